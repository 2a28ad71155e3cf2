"""Tests of significance: the exact p of paired differences, and its correction for many comparisons."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata


def signed_rank_p(differences: np.ndarray) -> float:
    """The exact two-sided p of Wilcoxon's signed-rank test, of differences none of which is zero.

    Every choice of signs is counted, also where differences tie: scipy's own test approximates there,
    or draws permutations, as its version and the number of pairs will have it.
    """
    doubled = (2 * rankdata(np.abs(differences))).astype(int)
    ways = np.zeros(doubled.sum() + 1)
    ways[0] = 1
    for rank in doubled:
        ways[rank:] += ways[:-rank].copy()
    positive = int(doubled[differences > 0].sum())
    least = min(positive, len(ways) - 1 - positive)
    return min(1.0, float(2 * ways[: least + 1].sum() / ways.sum()))


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the smallest p times their number, the next times one less, ..."""
    corrected, highest = [0.0] * len(ps), 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=lambda k: ps[k])):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[index]))
        corrected[index] = highest
    return corrected
