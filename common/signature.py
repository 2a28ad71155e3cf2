"""Signature: what a device tells about its task. Class means of features, never an image or a name."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from common.errors import SignatureError

VERSION = 1
MAX_CLASSES = 1000


@dataclass(frozen=True, eq=False)
class TaskSignature:
    """Per class of a task: the mean of its images' features in the probe, and how many they were.

    `means` is float16 (K, D), K in 2..1000; `counts` is int32 (K,), each at least 1. Classes have
    no names and no order. `probe` is the digest of the probe whose features they are. Raises
    SignatureError with every rule that is broken.
    """

    probe: str
    means: np.ndarray
    counts: np.ndarray

    def __post_init__(self) -> None:
        means, counts = np.asarray(self.means), np.asarray(self.counts)
        problems = []
        if means.dtype != np.float16 or means.ndim != 2:
            problems.append(f"means are {means.dtype} {means.shape}, not float16 (classes, width)")
        elif not np.isfinite(means).all():
            problems.append(f"{int((~np.isfinite(means)).sum())} means are NaN or infinite")
        if counts.dtype != np.int32 or counts.shape != means.shape[:1]:
            problems.append(f"counts are {counts.dtype} {counts.shape}, not int32 (classes,)")
        elif not 2 <= len(counts) <= MAX_CLASSES:
            problems.append(f"{len(counts)} classes; from 2 to {MAX_CLASSES} make a task")
        elif (counts < 1).any():
            problems.append(f"a class of {int(counts.min())} images; each has at least one")
        if problems:
            raise SignatureError(f"this is no signature: {'; '.join(problems)}; compute it again")
        for name, array in (("means", means), ("counts", counts)):
            array = array.copy()
            array.setflags(write=False)
            object.__setattr__(self, name, array)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TaskSignature) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def classes(self) -> int:
        """K, the number of classes."""
        return len(self.counts)

    @property
    def images(self) -> int:
        """How many images it was computed from."""
        return int(self.counts.sum())

    @cached_property
    def digest(self) -> str:
        """sha256 over version, probe, shape and values."""
        digest = hashlib.sha256(f"{VERSION} {self.probe} {self.means.shape}".encode())
        digest.update(self.means.tobytes())
        digest.update(self.counts.tobytes())
        return digest.hexdigest()


def signature_of(rows: np.ndarray, labels: np.ndarray, classes: int, probe: str) -> TaskSignature:
    """The signature of features (N, D) with labels int64 (N,) in [0, classes)."""
    sums = ClassSums(classes, rows.shape[1])
    sums.add(rows, labels)
    return sums.signature(probe)


class ClassSums:
    """Sums of features by class, taken in a batch at a time: a task's features need not fit in memory."""

    def __init__(self, classes: int, width: int) -> None:
        self._sums = np.zeros((classes, width))
        self._counts = np.zeros(classes, dtype=np.int64)

    def add(self, rows: np.ndarray, labels: np.ndarray) -> None:
        """Take in features (B, D) with labels int64 (B,)."""
        np.add.at(self._sums, labels, rows)
        self._counts += np.bincount(labels, minlength=len(self._counts))

    def signature(self, probe: str) -> TaskSignature:
        """The signature of all that was taken in."""
        means = self._sums / np.maximum(self._counts, 1)[:, None]
        means = np.where(np.isfinite(means), means, np.nan)
        return TaskSignature(probe, half_precision(means), self._counts.astype(np.int32))


def private_length(center: np.ndarray) -> float:
    """How far from the center all class means of a private signature are.

    Their own lengths would be noise, and nearness goes by directions alone. Twice as long as the center
    itself, or 1, they are numbers of the usual size, and who compares signatures knows private ones by
    it: means of features are hardly ever so far away, and never all equally far.
    """
    return max(2 * float(np.linalg.norm(center.astype(np.float64))), 1.0)


def is_private(signature: TaskSignature, center: np.ndarray) -> bool:
    """Whether a signature has the form of a private one: all its means at that distance of the center.

    It says nothing of how much noise there is in it. Values that half precision clips do not have it.
    """
    lengths = np.linalg.norm(signature.means.astype(np.float64) - center, axis=1)
    return bool(np.allclose(lengths, private_length(center), rtol=LENGTH_TOLERANCE))


LENGTH_TOLERANCE = 2e-3
"""Relative to that distance: more than twice what half precision can change of it."""


def half_precision(means: np.ndarray) -> np.ndarray:
    """Means in float16, those beyond its range drawn to its limits; NaN stays."""
    limit = float(np.finfo(np.float16).max)
    return np.clip(means, -limit, limit).astype(np.float16)
