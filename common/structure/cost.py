"""Cost: what a network costs, as sums of products over how many units are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MAX_INDICES = 2**24
"""A tensor's dimension is not larger, nor are there more classes: what says otherwise is not read."""
MAX_COST = 2**63 - 1
"""What the whole network may cost, with so many classes: what says otherwise is not read."""

Axis = tuple[int, tuple[tuple[int, int], ...]]
"""How many indices remain: those that are never cut, and (group, indices of one unit) of each group."""


@dataclass(frozen=True)
class Term:
    """constant x product over axes of (solid + sum over groups of per_unit x kept units)."""

    constant: int
    axes: tuple[Axis, ...]

    def at(self, kept: Sequence[int]) -> int:
        """The term for a number of kept units in every group."""
        value = self.constant
        for solid, parts in self.axes:
            value *= solid + sum(per_unit * int(kept[group]) for group, per_unit in parts)
        return value

    @property
    def numbers(self) -> tuple[int, ...]:
        """All factors and summands that it is made of."""
        of_axes = [n for solid, parts in self.axes for n in (solid, *(each for _, each in parts))]
        return self.constant, *of_axes


@dataclass(frozen=True)
class Cost:
    """What a network costs: terms, and terms for every class of its classifier."""

    terms: tuple[Term, ...]
    per_class: tuple[Term, ...]

    def at(self, kept: Sequence[int], classes: int) -> int:
        """The cost of keeping so many units of every group, with so many classes."""
        per_class = sum(term.at(kept) for term in self.per_class)
        return sum(term.at(kept) for term in self.terms) + classes * per_class

    def to_lists(self) -> list:
        """The cost as nested lists of numbers, for JSON."""
        return [[[t.constant, t.axes] for t in terms] for terms in (self.terms, self.per_class)]

    @classmethod
    def from_lists(cls, data: list) -> Cost:
        """The cost of such lists; TypeError or ValueError where they are none."""
        terms, per_class = data
        return cls(_terms(terms), _terms(per_class))


def _terms(data: list) -> tuple[Term, ...]:
    return tuple(
        Term(
            int(constant),
            tuple((int(solid), tuple((int(g), int(n)) for g, n in parts)) for solid, parts in axes),
        )
        for constant, axes in data
    )


def merged(terms: Sequence[Term]) -> tuple[Term, ...]:
    """Terms over the same axes as one, in a fixed order; axes without units are constants."""
    together: dict[tuple, int] = {}
    for term in terms:
        constant = term.constant
        for solid, parts in term.axes:
            constant *= 1 if parts else solid
        axes = tuple(sorted(axis for axis in term.axes if axis[1]))
        together[axes] = together.get(axes, 0) + constant
    return tuple(Term(constant, axes) for axes, constant in sorted(together.items()))


def largest(costs: Sequence[Cost]) -> tuple[Cost, ...]:
    """Those of the costs that no other one is at least as large as whatever is kept, in their order.

    Of equal ones the first. What is compared is term by term, so that some may be left that are never
    the largest.
    """
    parts = [
        {(axes, place): constant for place, terms in enumerate((cost.terms, cost.per_class))
         for constant, axes in ((term.constant, term.axes) for term in terms)}
        for cost in costs
    ]  # fmt: skip

    def covers(one: int, other: int) -> bool:
        return all(constant <= parts[one].get(key, 0) for key, constant in parts[other].items())

    return tuple(
        cost
        for at, cost in enumerate(costs)
        if not any(
            covers(other, at) and (other < at or not covers(at, other))
            for other in range(len(costs))
            if other != at
        )
    )
