"""The healing worker: a process that heals one network after the other, beside whoever serves.

It is told what to heal through a pipe, and ends when the other end of that is closed. What it has
healed lies in the healed store.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor

from common.backbone import Backbone, Weights, weights_digest
from common.errors import MaskvoteError
from common.mask import Mask
from common.structure import Structure
from common.tensor_file import read_tensors
from server.healing.heal import distance, heal_mask
from server.healing.public_images import public_images
from server.healing.store import HealedStore
from server.settings import HealingSettings

NICENESS = 10
"""Whoever serves goes first."""


@dataclass(frozen=True)
class Workplace:
    """What a worker is started with: where the store and the public images lie, and whose they are."""

    store: Path
    images: Path
    backbone: str
    structure: str


@dataclass(frozen=True)
class Order:
    """A packed mask to heal for, in so many seconds."""

    mask: bytes
    seconds: float


class Stop:
    """End what is being healed, as nobody waits for it any more; nothing is kept of it."""


class Started:
    """The worker runs, and needs the backbone's weights: a safetensors file."""


class Ready:
    """The worker has the public images and their features."""


@dataclass(frozen=True)
class Useless:
    """The worker cannot heal, and ends."""

    why: str


@dataclass(frozen=True)
class Healed:
    """What became of an order: whether the store has the network now, and else why not.

    It was `futile` if the same order would come to the same again.
    """

    kept: bool
    stopped: bool
    futile: bool
    seconds: float
    iterations: int
    why: str = ""


Report = Started | Ready | Useless | Healed


def work(pipe: Connection, workplace: Workplace) -> None:
    """Heal what is ordered, until the other end of the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever serves
    os.nice(NICENESS)
    torch.set_num_threads(1)
    with suppress(EOFError, ConnectionError):
        pipe.send(Started())
        weights, _ = read_tensors(pipe.recv_bytes())
        try:
            bench = _Bench(workplace, weights)
        except MaskvoteError as error:
            pipe.send(Useless(str(error)))
            return
        pipe.send(Ready())
        while True:
            order = pipe.recv()
            if isinstance(order, Order):
                pipe.send(_carry_out(order, bench, pipe))


def _carry_out(order: Order, bench: _Bench, pipe: Connection) -> Healed:
    told = False

    def stop() -> bool:
        nonlocal told
        if not told and pipe.poll():
            pipe.recv()  # a Stop; or nobody is there any more
            told = True
        return told

    began = time.monotonic()
    try:
        iterations, why = bench.heal(order, stop)
        futile = bool(why) and not told
    except MaskvoteError as error:
        # A disk that is full, say: there may be room next time.
        iterations, why, futile = 0, str(error), False
    return Healed(not why, told, futile, time.monotonic() - began, iterations, why)


class _Bench:
    """All that is needed to heal for a mask, read once."""

    def __init__(self, workplace: Workplace, weights: Weights) -> None:
        self._backbone = Backbone.from_json(workplace.backbone)
        self._structure = Structure.from_json(workplace.structure)
        digest = weights_digest(weights)
        self._store = HealedStore(workplace.store, self._backbone, digest, self._structure)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._weights = self._placed(weights)
        self._public = public_images(workplace.images, self._backbone, self._weights, self._store)

    def _placed(self, weights: Weights) -> dict[str, Tensor]:
        return {name: tensor.to(self._device) for name, tensor in weights.items()}

    def heal(self, order: Order, stop: Callable[[], bool]) -> tuple[int, str]:
        """How many iterations were done, and why nothing of them is kept, if so."""
        began = time.monotonic()
        mask = Mask.unpack(self._structure, order.mask)
        whole = self._store.backbone()
        start = self._weights
        if whole is not None and whole.covers(mask.density):
            start = self._placed(whole.weights)
        before = distance(self._backbone, start, mask, self._public)
        left = order.seconds - 2 * (time.monotonic() - began)
        if left <= 0:
            return 0, f"{order.seconds:.1f} seconds are no time for it"
        done = 0

        def watch(iteration: int, _: int) -> None:
            nonlocal done
            done = iteration

        healed = heal_mask(
            self._backbone, start, mask, self._public, HealingSettings(seconds=left),
            torch.Generator().manual_seed(0), watch=watch, stop=stop,
        )  # fmt: skip
        if stop():
            return done, "nobody waits for it any more"
        # Few iterations at a high learning rate can as well do harm.
        after = distance(self._backbone, healed, mask, self._public, within=mask)
        if not after < before:
            return done, f"it came no nearer to the backbone: {before:.4g} before, {after:.4g} after"
        self._store.put_network(mask, healed)
        return done, ""
