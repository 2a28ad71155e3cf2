"""Cost arrays: costs of one structure laid out so that all of them are evaluated at once."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from itertools import chain
from typing import TypeVar

import numpy as np

from common.errors import InputError
from common.structure.cost import MAX_INDICES, Axis, Cost, Term

NOTHING = Term(0, ())
"""The term that adds nothing."""
ONE: Axis = (1, ())
"""The axis that multiplies by 1."""

Key = TypeVar("Key", bound=Hashable)


class CostArrays:
    """What `Cost.at` gives for several costs, for all at once by a few operations on int64.

    The arrays are nested as the formula is: a cost sums a run of constant x product, a product multiplies
    a run of widths, a width sums a run of per_unit x amount. Amounts are the kept units of every group,
    the number of classes, and 1, by which what is never cut is counted. A width or product that several
    costs have is computed once.

    The costs are a structure's: no number in them is below 0, and for all units of groups of these sizes
    and MAX_INDICES classes none is above MAX_COST. So every result is exact.
    """

    def __init__(self, costs: Sequence[Cost], sizes: Sequence[int]) -> None:
        self._most = np.array([*sizes, MAX_INDICES, 1], dtype=np.int64)
        classes, solid_amount = len(sizes), len(sizes) + 1
        class_axis: Axis = (0, ((classes, 1),))
        # np.add.reduceat takes no empty runs: each starts with what changes nothing.
        terms = [
            [NOTHING, *cost.terms, *(Term(t.constant, (*t.axes, class_axis)) for t in cost.per_class)]
            for cost in costs
        ]
        products = _numbered(term.axes for run in terms for term in run)
        widths = _numbered(axis for axes in products for axis in (ONE, *axes))

        parts, self._width_starts = _runs([((solid_amount, n), *parts) for n, parts in widths])
        self._amount_of, self._per_unit = parts.T
        factors, self._product_starts = _runs([[(widths[a],) for a in (ONE, *axes)] for axes in products])
        (self._width_of,) = factors.T
        summands, self._cost_starts = _runs(
            [[(term.constant, products[term.axes]) for term in run] for run in terms]
        )
        self._constants, self._product_of = summands.T

    def at(self, kept: Sequence[int], classes: int) -> np.ndarray:
        """Each cost, int64 (costs,), of keeping so many units of every group, with so many classes.

        Raises InputError for more units than a group has, or fewer than none, and so for classes.
        """
        amounts = np.array([*kept, classes, 1], dtype=np.int64)
        if amounts.shape != self._most.shape or (amounts < 0).any() or (amounts > self._most).any():
            raise InputError(
                f"no sub-network has {list(kept)} units and {classes} classes; give 0 to "
                f"{self._most[:-2].tolist()} units, and 0 to {MAX_INDICES} classes"
            )
        widths = np.add.reduceat(self._per_unit * amounts[self._amount_of], self._width_starts)
        products = np.multiply.reduceat(widths[self._width_of], self._product_starts)
        return np.add.reduceat(self._constants * products[self._product_of], self._cost_starts)


def _numbered(keys: Iterable[Key]) -> dict[Key, int]:
    """Every key once, with its number."""
    return {key: number for number, key in enumerate(dict.fromkeys(keys))}


def _runs(runs: Sequence[Sequence[tuple[int, ...]]]) -> tuple[np.ndarray, np.ndarray]:
    """All entries of the runs in a row, int64 (entries, numbers of each), and where each run starts."""
    starts = np.cumsum([0, *(len(run) for run in runs[:-1])])
    return np.array(list(chain.from_iterable(runs)), dtype=np.int64), starts
