"""Predictions: what an artefact says of images, one after the other, and how that is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from client.artefacts.runnable import Runnable
from common.errors import TaskDataError

NAMED_AT_MOST = 100
"""Images that could not be read of which the reasons are kept: their number is not bounded."""


@dataclass(frozen=True)
class Prediction:
    """An image, and the likeliest classes with their probabilities, the likeliest first."""

    image: Path
    likeliest: tuple[tuple[str, float], ...]


@dataclass
class Failures:
    """Images that could not be read: how many, and why the first NAMED_AT_MOST could not."""

    count: int = 0
    reasons: list[tuple[Path, str]] = field(default_factory=list)

    def add(self, image: Path, error: TaskDataError) -> None:
        """Note one."""
        self.count += 1
        if len(self.reasons) < NAMED_AT_MOST:
            self.reasons.append((image, str(error)))


def predictions(
    runnable: Runnable,
    images: Iterable[Path],
    failures: Failures,
    top: int = 1,
    batch: int = 1,
    done: Callable[[int], object] = lambda count: None,
) -> Iterator[Prediction]:
    """The `top` likeliest classes of each image that can be read, in order; `failures` has the rest.

    One batch of images is in memory at a time; `done` is told how many more are classified or failed.
    """
    top = min(top, len(runnable.classes))
    remaining = iter(images)
    while paths := list(islice(remaining, batch)):
        read: list[tuple[Path, np.ndarray]] = []
        for path in paths:
            try:
                read.append((path, runnable.transform.read(path)))
            except TaskDataError as error:
                failures.add(path, error)
        if read:
            probabilities = runnable.probabilities(np.stack([pixels for _, pixels in read]))
            for (path, _), row in zip(read, probabilities, strict=True):
                best = np.argsort(-row, kind="stable")[:top]
                yield Prediction(path, tuple((runnable.classes[k], float(row[k])) for k in best))
        done(len(paths))
