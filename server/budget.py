"""Budget: how many units of every group a device can afford."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from common.errors import BudgetError
from common.exchange import Budget
from common.structure import Structure

Counts = tuple[int, ...]
"""Units kept per group, in the structure's order."""


def allot(structure: Structure, budget: Budget, classes: int) -> Counts:
    """The most units per group within the budget, never exceeded: one keep ratio for all groups.

    Every group keeps at least one unit. What is left of the budget would not pay for the next unit
    in turn. A larger budget never keeps fewer units of any group, and one for everything gives the
    whole backbone. Raises BudgetError naming the smallest sub-network where the budget is below it.
    """
    cost, limit, unit = _measure(structure, budget, classes)
    smallest = cost(structure.smallest)
    if smallest > limit:
        raise BudgetError(
            f"the budget is {limit:,} {unit}, the smallest sub-network of {structure.model.get('model')} "
            f"needs {smallest:,}; ask for at least {_least(structure, budget, smallest)}"
        )
    turns = _turns(structure.sizes)
    taken = _most(len(turns), lambda count: cost(_counts(structure, turns[:count])) <= limit)
    return _counts(structure, turns[:taken])


def _measure(
    structure: Structure, budget: Budget, classes: int
) -> tuple[Callable[[Sequence[int]], int], int, str]:
    if budget.keep_ratio is not None:
        # The tiny share guards against 0.1 * 1920 being 191.99999999999997.
        return sum, int(budget.keep_ratio * structure.units + 1e-6), "units"
    assert budget.parameters is not None
    return (lambda kept: structure.parameters(kept, classes)), budget.parameters, "parameters"


def _least(structure: Structure, budget: Budget, smallest: int) -> str:
    if budget.keep_ratio is not None:
        return f"a keep ratio of {math.ceil(1e6 * smallest / structure.units) / 1e6:g}"
    return f"{smallest:,} parameters"


def _turns(sizes: Sequence[int]) -> np.ndarray:
    """The group whose turn it is to get one more unit, from one each until all are whole.

    Seats go to parties so by Webster's method: a group of n gets its k-th unit at the ratio
    (k - 1/2) / n, where k is what it would be rounded to, and no group's size is of advantage.
    """
    groups = np.repeat(np.arange(len(sizes)), [size - 1 for size in sizes])
    ratios = [(np.arange(2, size + 1) - 0.5) / size for size in sizes]
    return groups[np.argsort(np.concatenate([*ratios, []]), kind="stable")]


def _counts(structure: Structure, turns: np.ndarray) -> Counts:
    return tuple((1 + np.bincount(turns, minlength=len(structure.groups))).tolist())


def _most(count: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to `count` that fits, where 0 does and none fits above one that does not."""
    low, high = 0, count
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low
