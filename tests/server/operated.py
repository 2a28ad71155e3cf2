"""Entries as other libraries export them, and a library that is operated while it is served."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from grpc_server import PLENTY, running_server
from random_tasks import random_mask, random_signature

from common.backbone import Weights
from common.exchange import Neighbour, Offer
from common.grpc_channel import Connection
from server import tokens
from server.entries import Entry
from server.library import Library
from server.remote_library import RemoteLibrary
from server.serving import ServeSettings

SOME_DAY = datetime(2031, 2, 3, 4, 5, 6, 789_012, tzinfo=UTC)
WITH_TOKENS = ServeSettings(address="127.0.0.1:0", limits=PLENTY, grace_seconds=5)


def entry_of(offer: Offer, number: int, classes: int = 3, **changes: object) -> Entry:
    """The entry of that number; its last digits are the number."""
    generator = np.random.default_rng(number)
    entry = Entry(
        entry=f"{generator.integers(16**8):08x}{number:024x}",
        signature=random_signature(offer.probe, generator, classes),
        mask=random_mask(offer.structure, generator),
        method="iterative" if number % 2 else "smsp",
        accuracy_before=0.25,
        accuracy_after=0.5 + number / 10_000,
        iterations=50,
        neighbours=(Neighbour(f"{number:032x}", 1 / 3),),
        contributor="kitchen" if number % 3 else "garage",
        recorded=SOME_DAY + timedelta(hours=number),
        position=number + 1,
    )
    return replace(entry, **changes)


def token_file(library: Path, role: tokens.Role) -> Path:
    """A new token of that role, in a file."""
    path = library.with_name(f"{role}.token")
    with Library.open(library) as opened:
        path.write_text(tokens.add(opened, f"the-{role}", role) + "\n")
    return path


@contextmanager
def served(path: Path, weights: Weights, role: tokens.Role = "operator") -> Iterator[Connection]:
    """How a caller of this role reaches the library while it is served."""
    token = token_file(path, role).read_text().strip()
    with Library.open(path) as library, running_server(library, weights, WITH_TOKENS) as port:
        yield Connection(f"127.0.0.1:{port}", token)


@contextmanager
def operated(path: Path, weights: Weights, role: tokens.Role = "operator") -> Iterator[RemoteLibrary]:
    """The library as an operator has it who is elsewhere."""
    with served(path, weights, role) as connection, RemoteLibrary(connection) as remote:
        yield remote
