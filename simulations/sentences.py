"""Numbers in plain words: what a comparison, a claim or a gap says, in one sentence each."""

from __future__ import annotations

from collections.abc import Sequence

from simulations.claims import Claim
from simulations.experiments.experiment import Experiment
from simulations.statistics import (
    ALIKE,
    FEWEST_PAIRS,
    Comparison,
    Gap,
    Interval,
    Point,
    Result,
    X,
    counted,
)

PLACES = {
    "keep_ratio": "keeping {} of the units",
    "entries": "with a library of {} tasks",
    "neighbours": "with {} neighbours",
    "healing_iterations": "with {} iterations of healing",
    "epsilon": "at epsilon {}",
    "images": "with {} images a class",
}
AXES = {
    "keep_ratio": "units kept",
    "entries": "tasks in the library",
    "neighbours": "neighbours that vote",
    "healing_iterations": "healing iterations",
    "epsilon": "epsilon of the signatures' privacy",
    "images": "images a class",
    "iterations": "iterations on the device",
}
SEEDS_NOTE = (
    "A seed is another draw of tasks and nothing more: backbone, library and healing are the same for "
    "all, and each task is measured once. Tasks share classes, and then the same training images, while "
    "intervals and tests take them for independent: they are rather too sure, and speak of this "
    "backbone with this library alone."
)
"""What the number of tasks and seeds beside an interval stands for."""
MOST_NAMED = 3
"""Cells that a gap names; of more it gives the number too."""


def axis_of(experiment: Experiment) -> str:
    """What the x axis shows."""
    return AXES.get(experiment.x, experiment.x.replace("_", " "))


def x_text(field: str, x: X) -> str:
    """A value of the x axis as figures and tables have it."""
    if x is None:
        return "all"
    if field == "keep_ratio":
        return f"{100 * float(x):g} %"
    if field == "epsilon" and not x:
        return "no noise"
    return f"{x:g}" if isinstance(x, int | float) else str(x)


def measured_text(point: Point) -> str:
    """What a point's value is: "after 25 iterations", "recall"."""
    if point.measured == "recall":
        return "in recall"
    done = point.way.iterations if point.measured == "after" else int(point.measured.removeprefix("at "))
    return f"after {done:,} iterations" if done else "before any tuning"


def percent(share: float) -> str:
    """A share of 1 in percent, with one decimal."""
    return f"{100 * share:.1f}"


def signed(share: float) -> str:
    """A difference in points, with its sign."""
    return f"{100 * share:+.1f}"


def p_text(p: float | None) -> str:
    """ "p < 0.001", "p = 0.012", "p = 0.31"; "" where nothing was tested."""
    if p is None:
        return ""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def sentence(experiment: Experiment, comparison: Comparison) -> str:
    """What a comparison says, and no more: that nothing was shown is not that nothing is there."""
    c = comparison
    places = [_places(experiment, point) for point in (c.point, c.against_point)]
    common = " ".join(text for text in places[0] if text in places[1])
    names = [
        " ".join([name, *(text for text in own if text not in other)])
        for name, own, other in zip((c.line, c.against), places, places[::-1], strict=True)
    ]
    common = f" {common}" if common else ""
    basis = f"{counted(c.tasks, c.tasks, 'tasks')}, {counted(c.seeds, c.seeds, 'seeds')}"
    if not c.tasks:
        return f"No task has both {names[0]} and {names[1]}{common}."
    if c.verdict == "same":
        return f"{names[0]} and {names[1]} come to the same on every task{common} ({basis})."
    if c.verdict in ("above", "below"):
        size = (-1 if c.verdict == "below" else 1) * c.difference
        bounds = sorted(abs(bound) for bound in c.interval) if c.interval else []
        crosses = c.interval is not None and c.interval[0] < 0 < c.interval[1]
        told = interval_text(c.interval) if crosses else " to ".join(map(percent, bounds))
        return (
            f"{names[0]} is {percent(size)} points {c.verdict} {names[1]}{common} "
            f"({basis}, 95 % interval {told}, {p_text(c.corrected)})."
        )
    extent = f"{signed(c.difference)} points, {basis}"
    extent += f", 95 % interval {interval_text(c.interval)}" if c.interval else ""
    if c.verdict == "unclear":
        side = "above" if c.difference > 0 else "below"
        return (
            f"Not clear: {names[0]} may be {side} {names[1]}{common} ({extent}, {p_text(c.corrected)})."
        )
    if c.verdict == "alike":
        return f"Alike within {100 * ALIKE:g} point: {names[0]} and {names[1]}{common} ({extent})."
    if c.verdict == "not shown":
        return (
            f"No difference shown: {names[0]} and {names[1]}{common} ({extent}, {p_text(c.corrected)})."
        )
    return f"Too few tasks to say whether {names[0]} or {names[1]} is better{common} ({extent})."


def headlines(result: Result) -> list[str]:
    """The sentences that answer an experiment's question; its table has the rest.

    Of bars all; along a tuning those at the value compared; along another axis those where the baseline
    stands, or at its end, and of the baseline's own line those at the end. Of recalls what lots would
    find, too.
    """
    experiment, by_lot = result.experiment, result.by_lot
    base = experiment.line(experiment.against)
    chosen = []
    for line in result.lines:
        own = [c for c in result.comparisons if c.line == line.name]
        if experiment.x == "iterations":
            picked = [c for c in own if c.point.measured == experiment.value] or own[-1:]
        elif experiment.x == "way":
            picked = own
        else:
            there = getattr(experiment.against, experiment.x)
            picked = [c for c in own if c.point.x == there and line.name != base] or own[-1:]
        chosen += picked
    lots = [f"By lot the recall would be {percent(by_lot)} % in the mean."] if by_lot is not None else []
    return [sentence(experiment, c) for c in chosen] + lots


def interval_text(interval: Interval | None) -> str:
    """An interval of a difference in points; "" for none."""
    return f"{signed(interval[0])} to {signed(interval[1])}" if interval else ""


def claim_sentence(claim: Claim) -> str:
    """What was measured of a claim, and what was to be reached."""
    write = signed if claim.unit == "points" else lambda value: f"{percent(value)} %"
    unit = " points" if claim.unit == "points" else ""
    target = f"at least {percent(claim.target)}{unit or ' %'}"
    if claim.value is None:
        return f"Not measured; to reach: {target}."
    basis = f"{counted(claim.tasks, claim.tasks, 'tasks')}, {counted(claim.seeds, claim.seeds, 'seeds')}"
    if claim.interval is None:
        few = f"{basis}: too few for an interval"
        return f"Measured {write(claim.value)}{unit} ({few}); to reach: {target}."
    if claim.tasks < FEWEST_PAIRS:
        basis += ": too few to say"
    low, high = map(write, claim.interval)
    return (
        f"Measured {write(claim.value)}{unit} (95 % interval {low} to {high}, {basis}); "
        f"to reach: {target}."
    )


def claims_note(claims: Sequence[Claim]) -> str:
    """How claims are judged, and what there being several of them does to that."""
    number = sum(claim.value is not None for claim in claims)
    return (
        "A number is reached where the whole 95 % interval of what was measured is at or above it, not "
        "reached where all of it is below; else, or with fewer than six tasks, it cannot be said. Each "
        "is judged on its own: the intervals are not corrected for "
        f"{counted(number, number, 'numbers')} having been measured. Of twenty that stand exactly at "
        "their mark, about one would be called reached or not by chance."
    )


def gap_sentence(gap: Gap) -> str:
    """Which cells give no number, and why."""
    named = ", ".join(gap.cells[:MOST_NAMED]) + (", ..." if len(gap.cells) > MOST_NAMED else "")
    return f"{gap.line}: {gap.why}, {counted(len(gap.cells), len(gap.cells), 'cells')}: {named}"


def gap_sentences(gaps: Sequence[Gap]) -> list[str]:
    """All gaps, a sentence each; the ways of which nothing was run share the last one."""
    said = [gap_sentence(gap) for gap in gaps if not gap.whole]
    never = [gap.line for gap in gaps if gap.whole]
    return said + ([f"Not run: {'; '.join(never)}"] if never else [])


def _places(experiment: Experiment, point: Point) -> list[str]:
    """Where a point stands, in words: on the axis, and after how many iterations."""
    if experiment.x in ("way", "iterations"):
        return [measured_text(point)]
    if experiment.x == "epsilon" and not point.x:
        return ["without noise", measured_text(point)]
    if experiment.x == "entries" and point.x is None:
        return ["with the whole library", measured_text(point)]
    place = PLACES.get(experiment.x, f"at {experiment.x} {{}}").format(x_text(experiment.x, point.x))
    return [place, measured_text(point)]
