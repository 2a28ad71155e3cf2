"""Evaluation: what an artefact gives for labelled images. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from client.artefacts.runnable import Runnable

IMAGES_AT_ONCE = 32
"""In memory, and given to what runs the network."""


def logits_in(
    runnable: Runnable, images: Sequence[Path], done: Callable[[int], object] = lambda count: None
) -> np.ndarray:
    """The logits (N, K) of images, in their order.

    `done` is told how many images are classified so far. TaskDataError for an image that cannot be read.
    """
    parts = []
    for start in range(0, len(images), IMAGES_AT_ONCE):
        paths = images[start : start + IMAGES_AT_ONCE]
        pixels = np.stack([runnable.transform.read(path) for path in paths])
        parts.append(runnable.logits(runnable.transform.normalised(pixels)))
        done(start + len(paths))
    return np.concatenate(parts)
