"""Calibration: whether a network is right as often as its probabilities say."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BINS = 15
"""Bins of equal width over the confidences from 0 to 1, as in Guo et al. (2017)."""


@dataclass(frozen=True)
class Calibration:
    """How probabilities compare with the results, over the images that were judged.

    `confidence` is the mean of the largest probabilities and `error` the expected calibration error;
    both are in [0, 1], and NaN where there are no images.
    """

    confidence: float
    error: float


def calibration_of(logits: np.ndarray, labels: np.ndarray, bins: int = BINS) -> Calibration:
    """The calibration of the softmax of logits (N, K) against labels (N,), each in [0, K).

    The expected calibration error (Guo et al., "On Calibration of Modern Neural Networks", 2017,
    equation 5) is the mean over the images of |accuracy - confidence| of their bin. Bins are open on
    the left, so that a confidence of exactly 1 is in the last one.
    """
    if not len(labels):
        return Calibration(float("nan"), float("nan"))
    probabilities = softmax(logits)
    confidences = probabilities.max(1)
    right = probabilities.argmax(1) == labels
    bin_of = np.clip(np.ceil(confidences * bins).astype(int) - 1, 0, bins - 1)
    excess = np.bincount(bin_of, weights=right - confidences, minlength=bins)
    return Calibration(float(confidences.mean()), float(np.abs(excess).sum() / len(labels)))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities float64 (N, K) of logits (N, K): each row adds up to 1."""
    shifted = np.asarray(logits, dtype=np.float64)
    powers = np.exp(shifted - shifted.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)
