"""Similarity: how near two tasks are, in [0, 1], from what the server may know about them.

`ClassStatistics` compares class means and is what a deployed server uses. `LeepSimilarity`, the
papers' own, needs a prediction for every example, which no server has: it serves simulations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, Self

import numpy as np

from common.errors import InputError
from common.probe import Probe
from common.signature import TaskSignature, is_private


class Similarity(Protocol):
    """How near the tasks of a library are to one task."""

    def add(self, entry: str, signature: TaskSignature) -> None:
        """Take a task into the library."""

    def to(self, task: TaskSignature) -> tuple[Sequence[str], np.ndarray]:
        """All entries in the order they were added, and a new float64 (entries,) in [0, 1]."""


SHARPNESS = 3
"""Tasks are related by the classes that they share. A class finds itself at a cosine near 1, but the
nearest of other classes at half of that, and ten of those are as near as five that are the same. Cubed,
what is not the same counts little: of the truly nearest five tasks 91 to 96 % are found instead of 82 to
87 (ResNet-18, tasks of ten and of five classes; docs/results.md)."""
BLOCK_COSINES = 2**22
"""Cosines that are held at one time: 16 MiB of them."""


class ClassStatistics:
    """Cosines of centred class means, each class matched with the other task's nearest, and sharpened.

    For tasks with class means a_1..a_K and b_1..b_M, centred on the probe's public mean and of unit
    length: the mean over k of (max over m of <a_k, b_m>)^p, averaged with the same the other way round,
    negative cosines taken as 0. 1 for the same task in any order of classes. p is the `sharpness`.

    Private signatures lie within the span of the probe's directions. Where either side is one, both are
    compared within that span: what of the other lies outside would only make it look farther than a
    private one. `directions` gives them, once such a signature comes; without, all are compared as they
    are.
    """

    def __init__(
        self,
        center: np.ndarray,
        directions: Callable[[], np.ndarray] | None = None,
        sharpness: int = SHARPNESS,
    ) -> None:
        self._center = np.asarray(center, dtype=np.float32)
        self._directions = directions
        self._sharpness = sharpness
        self._entries: list[str] = []
        self._starts: list[int] = [0]
        self._rows = np.empty((1024, len(self._center)), dtype=np.float32)
        self._private_rows = np.zeros(1024, dtype=bool)
        self._shares = np.empty(0, dtype=np.float32)

    @classmethod
    def of(cls, probe: Probe, sharpness: int = SHARPNESS) -> Self:
        """Class statistics of signatures that are made with a probe."""
        return cls(probe.center, lambda: probe.directions, sharpness)

    def add(self, entry: str, signature: TaskSignature) -> None:
        """Take a task's class means into the index."""
        rows = self._unit_rows(signature)
        start, end = self._starts[-1], self._starts[-1] + len(rows)
        if end > len(self._rows):
            size = max(end, 2 * len(self._rows))
            self._rows = _grown(self._rows, start, size)
            self._private_rows = _grown(self._private_rows, start, size)
        self._rows[start:end] = rows
        self._private_rows[start:end] = self._is_private(signature)
        self._entries.append(entry)
        self._starts.append(end)

    def to(self, task: TaskSignature) -> tuple[Sequence[str], np.ndarray]:
        """All entries, in the order they were added, and how near each is to the task."""
        if not self._entries:
            return [], np.empty(0)
        own, private = self._unit_rows(task), self._is_private(task)
        edges = np.array(self._starts)
        # So many entries at a time that their cosines with all own classes fit into little memory.
        rows = max(1, BLOCK_COSINES // len(own))
        cuts = np.unique(np.searchsorted(edges[:-1], np.arange(0, edges[-2] + 1, rows)))
        parts = [
            self._block(edges[first : last + 1], own, private)
            for first, last in zip(cuts, [*cuts[1:], len(edges) - 1], strict=True)
        ]
        return self._entries, np.concatenate(parts).astype(np.float64)

    def _block(self, edges: np.ndarray, own: np.ndarray, private: bool) -> np.ndarray:
        """How near the task with these unit class means is to entries whose rows lie between edges."""
        first, end = edges[0], edges[-1]
        cosines = self._rows[first:end] @ own.T
        if private:
            cosines /= self._shares_until(end)[first:end, None]
        elif (private_rows := self._private_rows[first:end]).any():
            cosines[private_rows] /= self._share_of(own)
        starts = edges[:-1] - first
        theirs = np.add.reduceat(self._sharpened(cosines.max(1)), starts) / np.diff(edges)
        ours = self._sharpened(np.maximum.reduceat(cosines, starts, axis=0)).mean(1)
        return np.minimum((theirs + ours) / 2, 1)

    def _sharpened(self, cosines: np.ndarray) -> np.ndarray:
        return np.clip(cosines, 0, 1) ** self._sharpness

    def _is_private(self, signature: TaskSignature) -> bool:
        return self._directions is not None and is_private(signature, self._center)

    def _shares_until(self, end: int) -> np.ndarray:
        """`_share_of` the rows before `end`, each computed once."""
        if len(self._shares) < end:
            more = self._share_of(self._rows[len(self._shares) : end])
            self._shares = np.concatenate([self._shares, more])
        return self._shares

    def _share_of(self, rows: np.ndarray) -> np.ndarray:
        """How long unit rows (n, D) are within the span of the directions, in (0, 1]."""
        assert self._directions is not None
        within = rows @ self._directions().T.astype(np.float32)
        return np.clip(np.linalg.norm(within, axis=1), LEAST_SHARE, 1)

    def _unit_rows(self, signature: TaskSignature) -> np.ndarray:
        rows = signature.means.astype(np.float32) - self._center
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


LEAST_SHARE = 1e-3
"""Of a class mean within the span: one that has less there is near to no private one."""


def _grown(array: np.ndarray, filled: int, size: int) -> np.ndarray:
    """A longer array that begins with what is filled of this one."""
    grown = np.empty((size, *array.shape[1:]), array.dtype)
    grown[:filled] = array[:filled]
    return grown


Examples = tuple[np.ndarray, np.ndarray]
"""A task's features in the probe (N, D), and its labels int64 (N,): what no server gets to see."""


class LeepSimilarity:
    """LEEP of each library task's model on the new task's own examples, as exp(LEEP) in (0, 1].

    exp(LEEP) is the geometric mean of the probabilities that the expected predictor gives to the
    right classes. A library task's model is the one that its signature gives (see
    `predictions_by_means`). `examples_of` finds the examples of the task with a signature: in a
    simulation, where they are at hand.
    """

    def __init__(self, center: np.ndarray, examples_of: Callable[[TaskSignature], Examples]) -> None:
        self._center = np.asarray(center, dtype=np.float64)
        self._examples_of = examples_of
        self._means: dict[str, np.ndarray] = {}

    def add(self, entry: str, signature: TaskSignature) -> None:
        """Take a task's class means in as a model."""
        self._means[entry] = signature.means.astype(np.float64)

    def to(self, task: TaskSignature) -> tuple[Sequence[str], np.ndarray]:
        """All entries, in the order they were added, and exp(LEEP) of each on the task."""
        features, labels = self._examples_of(task)
        values = [
            leep(predictions_by_means(features, means, self._center), labels)
            for means in self._means.values()
        ]
        return list(self._means), np.exp(np.array(values, dtype=np.float64))


def leep(source: np.ndarray, labels: np.ndarray) -> float:
    """LEEP: how well a source model's predictions tell a task's classes (Nguyen et al., 2020), <= 0.

    `source` is (N, Z), each row a distribution over source classes; `labels` int64 (N,). With the
    empirical P(y, z), mean over examples of log sum_z P(y_i | z) source[i, z]. Raises InputError on
    no examples, negative labels, NaN, or rows that are negative or do not sum to one.
    """
    source, labels = np.asarray(source, dtype=np.float64), np.asarray(labels)
    if source.ndim != 2 or labels.shape != source.shape[:1] or not len(labels):
        raise InputError(f"predictions {source.shape}, labels {labels.shape}; one row each, not none")
    if labels.min() < 0:
        raise InputError(f"a label is {labels.min()}; labels are classes, from 0")
    # NaN is not at least 0, and infinite rows do not sum to one.
    if not (source >= 0).all() or not np.allclose(source.sum(1), 1, atol=1e-4):
        raise InputError("predictions are no distributions: no row is negative, each sums to one")
    joint = np.zeros((int(labels.max()) + 1, source.shape[1]))
    np.add.at(joint, labels, source / len(labels))
    marginal = joint.sum(0)
    given = np.divide(joint, marginal, out=np.zeros_like(joint), where=marginal > 0)
    expected = (given[labels] * source).sum(1)
    return float(np.log(np.clip(expected, 1e-300, 1)).mean())


def predictions_by_means(
    features: np.ndarray, means: np.ndarray, center: np.ndarray, temperature: float = 0.1
) -> np.ndarray:
    """A library task's model as its signature gives it: softmax over cosines to its class means.

    Features (N, D) and means (Z, D), both centred; the result is (N, Z) and feeds `leep`.
    """
    left, right = features - center, means.astype(np.float64) - center
    left = left / np.maximum(np.linalg.norm(left, axis=1, keepdims=True), 1e-12)
    right = right / np.maximum(np.linalg.norm(right, axis=1, keepdims=True), 1e-12)
    logits = left @ right.T / temperature
    logits -= logits.max(1, keepdims=True)
    weights = np.exp(logits)
    return weights / weights.sum(1, keepdims=True)
