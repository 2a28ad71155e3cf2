"""Budget: how many units of every group a device can afford."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from common.errors import BudgetError
from common.exchange import Budget
from common.structure import Structure

Counts = tuple[int, ...]
"""Units kept per group, in the structure's order."""


def allot(structure: Structure, budget: Budget, classes: int) -> Counts:
    """The most units per group within the budget: one keep ratio for all groups, never exceeded.

    Every group keeps at least one unit, so a small group may keep more than its share; the others
    then keep less. What the common ratio leaves of the budget is spent unit by unit, on the groups
    that are nearest to their next one. A budget for everything gives the whole backbone. Raises
    BudgetError naming the smallest sub-network where the budget is below it.
    """
    cost, limit, unit = _measure(structure, budget, classes)
    smallest = cost(structure.smallest)
    if smallest > limit:
        raise BudgetError(
            f"the budget is {limit:,} {unit}, the smallest sub-network of {structure.model.get('model')} "
            f"needs {smallest:,}; ask for at least {_least(structure, budget, smallest)}"
        )
    counts = _at_ratio(structure.sizes, _largest_ratio(structure.sizes, cost, limit))
    return _spend_rest(structure.sizes, counts, cost, limit)


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
        return f"a keep ratio of {smallest / structure.units:.4f}"
    return f"{smallest:,} parameters"


def _at_ratio(sizes: Sequence[int], ratio: float) -> Counts:
    return tuple(max(1, min(size, int(ratio * size + 1e-9))) for size in sizes)


def _largest_ratio(sizes: Sequence[int], cost: Callable[[Sequence[int]], int], limit: int) -> float:
    """The largest ratio within the limit; costs grow with the ratio, so the interval is halved."""
    low, high = 0.0, 1.0
    if cost(_at_ratio(sizes, high)) <= limit:
        return high
    while high - low > 1 / (4 * max(sizes, default=1) ** 2):
        middle = (low + high) / 2
        if cost(_at_ratio(sizes, middle)) <= limit:
            low = middle
        else:
            high = middle
    return low


def _spend_rest(
    sizes: Sequence[int], counts: Counts, cost: Callable[[Sequence[int]], int], limit: int
) -> Counts:
    kept = list(counts)
    order = sorted(range(len(sizes)), key=lambda g: (kept[g] + 1) / sizes[g])
    for group in order:
        if kept[group] < sizes[group]:
            kept[group] += 1
            if cost(kept) > limit:
                kept[group] -= 1
    return tuple(kept)
