"""How ways look in figures: a colour and a marker for each, the same everywhere; names beside lines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from simulations.statistics import Line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Mark = tuple[str, str]
"""Colour and marker."""

INK = "#1b1e23"
"""Text and axes; on a page they take the colour of the text around the figure."""
LOTS = "#9aa0a8"
"""What lots would come to: a line across figures of recall."""
WIDTH = 7.0
"""Inches; 100 dots each."""
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "text.parse_math": False,
    "svg.fonttype": "none",
}
MARKS = {
    "SMSP": ("#d55e00", "o"),
    "MVP": ("#b8609a", "s"),
    "SMSP pruned": ("#b4642a", "s"),
    "MVP one-shot": ("#b8609a", "D"),
    "L1": ("#0072b2", "^"),
    "L2": ("#4f8fc0", "v"),
    "Taylor": ("#b8860b", "P"),
    "SNIP": ("#009e73", "X"),
    "Torch-Pruning magnitude": ("#5a82c4", "<"),
    "Torch-Pruning Taylor": ("#a8842c", ">"),
    "random": ("#808890", "d"),
    "nearest alone": ("#c0507a", "p"),
    "everyone": ("#8c6bd1", "h"),
    "farthest": ("#6f8f2f", "8"),
    "iterative": ("#2e8b57", "*"),
    "scratch": ("#9c6b3f", "x"),
    "linear probe": ("#7a7f87", "+"),
    "small network": ("#6b7785", "1"),
    "dense": (INK, "."),
}
"""Mask -> colour and marker: told apart also by who sees fewer colours, on light and on dark pages."""
SPARE = [
    ("#d55e00", "o"),
    ("#0072b2", "^"),
    ("#009e73", "X"),
    ("#b8609a", "s"),
    ("#b8860b", "P"),
    ("#8c6bd1", "h"),
]
"""For lines of one figure that share a mask, and for masks without a mark."""
GAP = 0.055
"""Least distance of two names beside lines, as a share of the axis."""

Given = ParamSpec("Given")
Drawn = TypeVar("Drawn")


def styled(draw: Callable[Given, Drawn]) -> Callable[Given, Drawn]:
    """The same drawing, in the style of all figures: names are never read as formulae."""

    @wraps(draw)
    def drawing(*given: Given.args, **named: Given.kwargs) -> Drawn:
        from matplotlib import rc_context

        with rc_context(STYLE):
            return draw(*given, **named)

    return drawing


def marked(lines: Sequence[Line]) -> list[tuple[Line, Mark]]:
    """Every line with its mask's mark; those that would look like one before them get a spare one."""
    used: set[tuple[Mark, str]] = set()
    found = []
    for line in lines:
        way = line.points[0].way
        spare = [mark for mark in SPARE if (mark, way.healing) not in used]
        mark = MARKS.get(way.mask, (spare or SPARE)[0])
        if (mark, way.healing) in used and spare:
            mark = spare[0]
        used.add((mark, way.healing))
        found.append((line, mark))
    return found


def label_beside(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Names to the right of lines that end at these heights, spread so that none covers another.

    `ends` are heights, names and colours; a short stroke of that colour leads from the end to the name.
    """
    low, high = axes.get_ylim()
    gap = GAP * (high - low)
    ordered = sorted(ends)
    places: list[float] = []
    for height, _, _ in ordered:
        places.append(max(height, places[-1] + gap) if places else height)
    # Pushed up too far they all come down together, so that they stay beside the axes.
    excess = max(0.0, places[-1] - high) if places else 0.0
    for place, (height, name, colour) in zip(places, ordered, strict=True):
        axes.annotate(
            name,
            xy=(1.0, height),
            xytext=(1.05, place - min(excess, place - low)),
            xycoords=axes.get_yaxis_transform(),
            textcoords=axes.get_yaxis_transform(),
            va="center",
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 1,
                "shrinkA": 1,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
            annotation_clip=False,
        )
