"""Devices of a library, each known by a number: what it asks, is assigned, and gives back."""

import multiprocessing
import sqlite3
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from random_tasks import random_mask, random_signature

from common.budget import Budget
from common.exchange import Contribution, Neighbour, Offer, Receipt, TaskDescription
from common.mask import Mask
from server.library import Library, StoredAssignment

WEIGHTS_DIGEST = "ab" * 32

# Its children start in milliseconds, and without this process's threads and open files.
clean_processes = multiprocessing.get_context("forkserver")
clean_processes.set_forkserver_preload(["server.library", "server.tokens", "common.probe"])


def request_id(number: int) -> str:
    return f"{number:032x}"


def stored_assignment(offer: Offer, number: int) -> StoredAssignment:
    """What the device of that number asks and is assigned."""
    generator = np.random.default_rng(number)
    signature = random_signature(offer.probe, generator, classes=2 + number % 3)
    mask = random_mask(offer.structure, generator)
    return StoredAssignment(
        TaskDescription(request_id(number), signature, Budget(keep_ratio=0.3, headroom=1.5), "mvp"),
        origin="vote",
        target=tuple(max(1, count // 2) for count in mask.counts),
        rounds=3,
        mask=mask,
        neighbours=(Neighbour(request_id(901), 0.75), Neighbour(request_id(902), 1 / 3)),
        contributor=f"device-{number}",
    )


def contribution(offer: Offer, number: int, draw: int = 0) -> Contribution:
    """What the device of that number gives back: of what it held, the target, by lot."""
    assigned = stored_assignment(offer, number)
    lot = np.random.default_rng([number, draw])
    scores = {name: np.where(row, lot.random(len(row)), -1) for name, row in assigned.mask.items()}
    mask = Mask.keep_top(offer.structure, scores, assigned.target)
    return Contribution(request_id(number), mask, 0.1, number / (number + 1), 25)


def adapt(library: Library, number: int) -> Receipt:
    """Everything that a device does with the library."""
    library.assigned(stored_assignment(library.offer, number))
    return library.record(contribution(library.offer, number))


def adapt_all(library: Library, numbers: Iterable[int]) -> None:
    for number in numbers:
        adapt(library, number)


def change(path: Path, statement: str, *values: object) -> None:
    """Change a closed library's file behind its back."""
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(statement, values)
    connection.close()
