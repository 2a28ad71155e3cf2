"""Budget: the largest sub-network that a device can afford, as units of every group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import gcd

import numpy as np

from common.budget import Budget, Counts, check_feasible, demands
from common.structure import Group, Structure

Fits = Callable[[Sequence[int]], bool]


def allot(structure: Structure, budget: Budget, classes: int, beyond: Counts | None = None) -> Counts:
    """The most units per group within all limits of a budget, none of which is ever exceeded.

    Units are dealt in turn, so that one keep ratio holds for all groups, as long as everything fits; a
    group whose next unit does not fit is passed over from then on, so that in the end nothing could be
    added to any. Residual groups stay whole where the internal ones alone come within the budget,
    unless a keep ratio is asked for, which all groups have. Widths are multiples of `budget.multiple`,
    or of the largest half, quarter, ... of it that leaves a group a choice, or a network within the
    budget at all.

    Every group keeps at least one unit, or as many as in `beyond` says, which comes within the budget; a
    budget for everything gives the whole backbone. A larger keep ratio never keeps fewer units of any
    group. Raises BudgetError naming the smallest budget where not even the smallest sub-network is
    within it, and as of `demands`.
    """
    check_feasible(structure, budget, classes)
    limits = demands(structure, budget, classes)

    def fits(kept: Sequence[int]) -> bool:
        return all(limit.fits(kept) for limit in limits)

    multiple = budget.multiple
    while True:
        steps = tuple(_step(group, multiple) for group in structure.groups)
        if beyond is not None:
            return _deal(structure.sizes, steps, beyond, fits)
        for start in _starts(structure, steps, budget):
            if fits(start):
                return _deal(structure.sizes, steps, start, fits)
        multiple //= 2


def _starts(structure: Structure, steps: Sequence[int], budget: Budget) -> list[Counts]:
    """Where dealing may start: with residual groups whole, if that is a choice; with the least of all."""
    least = tuple(min(step, group.units) for step, group in zip(steps, structure.groups, strict=True))
    if budget.keep_ratio is not None:
        return [least]
    whole = tuple(
        group.units if group.kind == "residual" else few
        for group, few in zip(structure.groups, least, strict=True)
    )
    return [whole, least]


def _step(group: Group, multiple: int) -> int:
    """Units that come together: as many as make a multiple of channels, or half of that, and so on, while
    a group has no two such widths.
    """
    first = group.members[0].unit_of
    channels = int((first >= 0).sum()) // group.units
    step = multiple // gcd(multiple, max(1, channels))
    while step > 1 and 2 * step > group.units:
        step //= 2
    return step


def _deal(sizes: Counts, steps: Counts, start: Counts, fits: Fits) -> Counts:
    """What comes of dealing steps of units in turn, from a start that fits."""
    turns, kept = _turns(sizes, steps, start), start
    while len(turns):
        most = _most(len(turns), partial(_fit, fits, turns, sizes, steps, kept))
        kept, left = _after(turns[:most], sizes, steps, kept), turns[most:]
        turns = left[left != left[0]] if len(left) else left
    return kept


def _fit(fits: Fits, turns: np.ndarray, sizes: Counts, steps: Counts, held: Counts, count: int) -> bool:
    return fits(_after(turns[:count], sizes, steps, held))


def _after(turns: np.ndarray, sizes: Counts, steps: Counts, held: Counts) -> Counts:
    """What is held after these turns; the last step of a group may be shorter."""
    dealt = np.bincount(turns, minlength=len(sizes))
    return tuple(np.minimum(held + dealt * np.array(steps), sizes).tolist())


def _turns(sizes: Sequence[int], steps: Sequence[int], start: Counts) -> np.ndarray:
    """The group whose turn it is to get one more step, from the start until all are whole.

    Seats go to parties so by Webster's method: a group of n gets its k-th unit at the ratio
    (k - 1/2) / n, where k is what it would be rounded to, and no group's size is of advantage. A step is
    dealt where its middle would be rounded to.
    """
    groups, ratios = [np.empty(0, dtype=np.int64)], [np.empty(0)]
    for group, (size, step, held) in enumerate(zip(sizes, steps, start, strict=True)):
        upto = np.minimum(np.arange(held + step, size + step, step), size)
        groups.append(np.full(len(upto), group))
        ratios.append((upto - step / 2) / size)
    return np.concatenate(groups)[np.argsort(np.concatenate(ratios), kind="stable")]


def _most(count: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to `count` that fits, where 0 does and none fits above one that does not.

    Sought from 1 up in doubling strides, as after the first time little is left that fits.
    """
    low, high = 0, 1
    while high <= count and fits(high):
        low, high = high, 2 * high
    high = min(high - 1, count)
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low
