"""Cost: what a network costs, as sums of products over how many units are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Term:
    """constant x product over axes of (solid + sum over groups of per_unit x kept units)."""

    constant: int
    axes: tuple[tuple[int, tuple[tuple[int, int], ...]], ...]

    def at(self, kept: Sequence[int]) -> int:
        """The term for a number of kept units in every group."""
        value = self.constant
        for solid, parts in self.axes:
            value *= solid + sum(per_unit * int(kept[group]) for group, per_unit in parts)
        return value


@dataclass(frozen=True)
class Cost:
    """What a network costs: terms, and terms for every class of its classifier."""

    terms: tuple[Term, ...]
    per_class: tuple[Term, ...]

    def at(self, kept: Sequence[int], classes: int) -> int:
        """The cost of keeping so many units of every group, with so many classes."""
        per_class = sum(term.at(kept) for term in self.per_class)
        return sum(term.at(kept) for term in self.terms) + classes * per_class


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
