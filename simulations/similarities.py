"""Similarity measures that simulations hold against the server's own.

Those that need a library task's model take the one that its signature gives: logits are cosines to its
class means. LogME and GBC score a model for data, not a pair of tasks; their values are put into [0, 1]
by rank over the library, as a vote needs weights and not log-likelihoods.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import rankdata

from common.errors import InputError
from common.probe import Probe
from common.signature import TaskSignature
from server.similarity import (
    ClassStatistics,
    Examples,
    LeepSimilarity,
    Similarity,
    predictions_by_means,
)

ExamplesOf = Callable[[TaskSignature], Examples]
Measure = Callable[[np.ndarray, np.ndarray], float]
"""Scores a model by its logits (N, Z) on examples labelled int64 (N,); more is better."""

MOST_TURNS = 100


def logme(logits: np.ndarray, labels: np.ndarray) -> float:
    """LogME: the log evidence, per example, of labels as linear functions of features (You et al., 2021).

    `logits` (N, D) are the features, `labels` (N,) in [0, K): the mean over classes of the evidence of
    the best isotropic prior and noise, by fixed-point iteration. Raises InputError for no examples.
    """
    rows, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    if not len(labels) or rows.shape[:1] != labels.shape:
        raise InputError(f"features {rows.shape}, labels {labels.shape}; one row each, not none")
    count, width = rows.shape
    left, singular, _ = np.linalg.svd(rows, full_matrices=False)
    squares = singular**2
    evidence = []
    for k in range(int(labels.max()) + 1):
        target = (labels == k).astype(np.float64)
        inside = left.T @ target
        outside = max(target @ target - inside @ inside, 0.0)
        prior = noise = 1.0  # alpha and beta: precisions of the weights and of the labels
        for _ in range(MOST_TURNS):
            posterior = prior + noise * squares
            gamma = (noise * squares / posterior).sum()
            weights = (noise**2 * squares * inside**2 / posterior**2).sum()
            rest = ((prior / posterior * inside) ** 2).sum() + outside
            before = prior / noise
            prior, noise = gamma / max(weights, 1e-12), (count - gamma) / max(rest, 1e-12)
            if abs(prior / noise - before) <= 1e-3 * before:
                break
        posterior = prior + noise * squares
        weights = (noise**2 * squares * inside**2 / posterior**2).sum()
        rest = ((prior / posterior * inside) ** 2).sum() + outside
        log_determinant = np.log(posterior).sum() + (width - len(singular)) * np.log(prior)
        evidence.append(
            (width * np.log(prior) + count * np.log(noise) - log_determinant - prior * weights
             - noise * rest - count * np.log(2 * np.pi)) / (2 * count)
        )  # fmt: skip
    return float(np.mean(evidence))


def gbc(logits: np.ndarray, labels: np.ndarray) -> float:
    """GBC: minus the overlap of classes as Gaussians of diagonal covariance (Pandy et al., 2022), <= 0.

    The Bhattacharyya coefficients of all ordered pairs of classes, summed, in the space of `logits`
    (N, D). Raises InputError for no examples.
    """
    rows, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    if not len(labels) or rows.shape[:1] != labels.shape:
        raise InputError(f"features {rows.shape}, labels {labels.shape}; one row each, not none")
    classes = [rows[labels == k] for k in np.unique(labels)]
    means = np.array([part.mean(0) for part in classes])
    spreads = np.array([part.var(0) + 1e-6 for part in classes])
    total = 0.0
    for i in range(len(classes)):
        for j in range(len(classes)):
            if i != j:
                between = (spreads[i] + spreads[j]) / 2
                distance = ((means[i] - means[j]) ** 2 / between).sum() / 8
                shape = np.log(between / np.sqrt(spreads[i] * spreads[j])).sum() / 2
                total += np.exp(-distance - shape)
    return -total


class RankedSimilarity:
    """Library tasks by how well the model that each one's signature gives does on the new examples.

    `measure` scores its logits; similarities are ranks in (0, 1], the best at 1, equal scores alike.
    """

    def __init__(self, center: np.ndarray, examples_of: ExamplesOf, measure: Measure) -> None:
        self._center = np.asarray(center, dtype=np.float64)
        self._examples_of = examples_of
        self._measure = measure
        self._means: dict[str, np.ndarray] = {}

    def add(self, entry: str, signature: TaskSignature) -> None:
        """Take a task's class means in as a model."""
        self._means[entry] = signature.means.astype(np.float64)

    def to(self, task: TaskSignature) -> tuple[Sequence[str], np.ndarray]:
        """All entries, in the order they were added, and the rank of each."""
        features, labels = self._examples_of(task)
        scores = [
            self._measure(predictions_by_means(features, means, self._center), labels)
            for means in self._means.values()
        ]
        return list(self._means), rankdata(scores) / max(len(scores), 1)


class RandomSimilarity:
    """Similarities drawn by lot, the same for the same task: what nearness is to be held against."""

    def __init__(self) -> None:
        self._entries: list[str] = []

    def add(self, entry: str, signature: TaskSignature) -> None:
        """Take in a task."""
        self._entries.append(entry)

    def to(self, task: TaskSignature) -> tuple[Sequence[str], np.ndarray]:
        """All entries, in the order they were added, and a number for each."""
        lot = np.random.default_rng(zlib.crc32(task.digest.encode()))
        return self._entries, lot.random(len(self._entries))


SIMILARITIES: dict[str, Callable[[Probe, ExamplesOf], Similarity]] = {
    "class statistics": lambda probe, examples_of: ClassStatistics.of(probe),
    "plain cosines": lambda probe, examples_of: ClassStatistics.of(probe, sharpness=1),
    "LEEP": lambda probe, examples_of: LeepSimilarity(probe.center, examples_of),
    "LogME": lambda probe, examples_of: RankedSimilarity(probe.center, examples_of, logme),
    "GBC": lambda probe, examples_of: RankedSimilarity(probe.center, examples_of, gbc),
    "random": lambda probe, examples_of: RandomSimilarity(),
}
"""Name -> the measure, for signatures of this probe and whoever finds a task's examples."""
