"""Do similar tasks share units? Overlap of a library's masks against the relatedness of their tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from common.errors import InputError
from simulations.library_records import LibraryMasks
from simulations.significance import holm

PERMUTATIONS = 999
"""Of the tasks, for Mantel's test."""
FEWEST_TASKS = 3
"""Two have but one pair, and nothing to correlate."""
BINS = ((0.0, 0.0, "none"), (0.0, 0.1, "to 10 %"), (0.1, 0.25, "10 to 25 %"), (0.25, 1.0, "over 25 %"))
"""Relatedness of pairs, above the first and up to the second, as figures group it."""


@dataclass(frozen=True)
class GroupOverlap:
    """One group over all pairs of tasks: means of intersection over union, in [0, 1].

    `chance` is what masks of as many units drawn by lot would have. `binned` are means by relatedness
    (see BINS), None without such a pair. `correlation` with relatedness is None where one of them does
    not vary; `p` is Mantel's, one-sided, after Holm over the groups.
    """

    name: str
    mean: float
    chance: float
    binned: tuple[float | None, ...]
    correlation: float | None
    p: float | None


@dataclass(frozen=True)
class Overlaps:
    """The study: groups in the structure's order, then the mean over all of them, named "all"."""

    tasks: int
    pairs: tuple[int, ...]
    """In each bin."""
    groups: tuple[GroupOverlap, ...]


def overlaps(library: LibraryMasks, permutations: int = PERMUTATIONS) -> Overlaps:
    """Overlap per group of all pairs of tasks against their relatedness.

    InputError with fewer than FEWEST_TASKS.
    """
    count = len(library.tasks)
    if count < FEWEST_TASKS:
        raise InputError(f"a library of {count} tasks has no pairs to compare; seed three or more")
    one, other = np.array(list(combinations(range(count), 2))).T
    related = np.zeros((count, count))
    for i, j in zip(one, other, strict=True):
        related[i, j] = related[j, i] = library.tasks[i].relatedness(library.tasks[j])
    names = [*(name for name, _ in library.groups), "all"]
    columns, chances = [], []
    start = 0
    for _, units in library.groups:
        rows = library.kept[:, start : start + units].astype(np.float64)
        start += units
        shared, sizes = rows @ rows.T, rows.sum(1)
        union = sizes[:, None] + sizes[None, :] - shared
        columns.append((shared / np.maximum(union, 1))[one, other])
        chances.append(float(sizes.mean() / (2 * units - sizes.mean())))
    table = np.column_stack([*columns, np.mean(columns, axis=0)])
    chances.append(float(np.mean(chances)))
    correlations, ps = _mantel(related, table, one, other, permutations)
    pairs = related[one, other]
    members = [_in_bin(pairs, *bounds) for *bounds, _ in BINS]
    groups = [
        GroupOverlap(
            name,
            float(table[:, k].mean()),
            chances[k],
            tuple(float(table[own, k].mean()) if own.any() else None for own in members),
            correlations[k],
            ps[k],
        )
        for k, name in enumerate(names)
    ]
    return Overlaps(count, tuple(int(own.sum()) for own in members), tuple(groups))


def _in_bin(related: np.ndarray, low: float, high: float) -> np.ndarray:
    return (related == 0) if high == 0 else (related > low) & (related <= high)


def _mantel(
    related: np.ndarray, table: np.ndarray, one: np.ndarray, other: np.ndarray, permutations: int
) -> tuple[list[float | None], list[float | None]]:
    """Correlation of relatedness with every column, and how often relabelled tasks reach it.

    Pairs that share a task are not independent: so tasks are permuted, and not pairs.
    """
    centred = table - table.mean(0)
    norms = np.sqrt((centred**2).sum(0))
    target = related[one, other]
    scale = np.sqrt(((target - target.mean()) ** 2).sum())
    varies = (norms > 1e-12) & (scale > 1e-12)
    unit = centred / np.where(norms > 1e-12, norms, 1)

    def correlation(order: np.ndarray) -> np.ndarray:
        values = related[order[one], order[other]]
        return (values - values.mean()) @ unit / max(scale, 1e-12)

    lot = np.random.default_rng(0)
    tasks = len(related)
    found = correlation(np.arange(tasks))
    reached = np.ones(table.shape[1])
    for _ in range(permutations):
        # A permutation that changes nothing gives the same sum in another order.
        reached += correlation(lot.permutation(tasks)) >= found - 1e-12
    raw = reached / (permutations + 1)
    return _known(found, varies), _corrected(raw, varies)


def _known(values: np.ndarray, varies: np.ndarray) -> list[float | None]:
    return [float(value) if ok else None for value, ok in zip(values, varies, strict=True)]


def _corrected(raw: np.ndarray, varies: np.ndarray) -> list[float | None]:
    """Holm over the groups; the mean over them, which comes last, is a question of its own."""
    own: Sequence[int] = np.flatnonzero(varies[:-1]).tolist()
    ps = _known(raw, varies)
    for index, p in zip(own, holm([float(raw[k]) for k in own]), strict=True):
        ps[index] = p
    return ps
