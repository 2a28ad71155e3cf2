"""Evaluation: what an artefact takes labelled images for. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from client.artefacts.runnable import Runnable

IMAGES_AT_ONCE = 32
"""In memory, and given to what runs the network."""


def found_in(
    runnable: Runnable, images: Sequence[Path], done: Callable[[int], object] = lambda count: None
) -> np.ndarray:
    """Which logit is largest for each image, int64 (N,); the first of equal ones.

    `done` is told how many images are classified so far. TaskDataError for an image that cannot be read.
    """
    found = np.zeros(len(images), dtype=np.int64)
    for start in range(0, len(images), IMAGES_AT_ONCE):
        paths = images[start : start + IMAGES_AT_ONCE]
        pixels = np.stack([runnable.transform.read(path) for path in paths])
        logits = runnable.logits(runnable.transform.normalised(pixels))
        found[start : start + len(paths)] = logits.argmax(axis=1)
        done(start + len(paths))
    return found
