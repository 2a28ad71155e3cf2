"""An experiment, as data: a question, the ways that answer it, and how its figure is drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from simulations.way import Way

Tasks = Literal["new", "five", "shifted", "fresh"]
"""Which tasks: of ten classes; of five; of ten classes in another domain than the photographs' own; and
of ten again, by which nothing was chosen: no default, and no way that a page speaks of first."""


@dataclass(frozen=True)
class Experiment:
    """A question that is answered by the same tasks in several ways.

    `x` is the way's field that varies along the figure's axis, or "iterations" for the points along
    each tuning, or "way" for bars. `value` is what is compared (see `Record.values`; the y axis), and
    every line is held against `against` by a paired test over tasks.
    """

    name: str
    question: str
    ways: tuple[Way, ...]
    x: str
    against: Way
    value: str = "at 25"
    line: Callable[[Way], str] = lambda way: way.name
    tasks: tuple[Tasks, ...] = ("new",)
    evaluate_at: Sequence[int] = (0, 25)
