"""From records to numbers: means and spreads over tasks, and every way held against one by paired tests.

A task counts once: what it came to under several seeds is averaged first. Differences are taken task by
task, over the tasks that both sides have.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy.stats import t

from common.errors import InputError
from simulations.experiments.experiment import Experiment
from simulations.records import Record
from simulations.significance import holm, signed_rank_p
from simulations.way import Way

CONFIDENCE = 0.95
"""Of all intervals; what is left is where a corrected p tells two ways apart."""
FEWEST_PAIRS = 6
"""With fewer differing pairs no signed-rank test can reach p < 0.05."""
ALIKE = 0.01
"""Ways are alike where the whole interval of their difference lies within this, on both sides of zero."""

X = float | str | None
"""Where a point stands: a number, a word, or None for "all" (a library) or "no axis"."""
Interval = tuple[float, float]
Values = Mapping[tuple[int, str], float]
"""What was measured, by seed and task."""
Verdict = Literal["above", "below", "alike", "unclear", "not shown", "same", "too few"]


@dataclass(frozen=True)
class Point:
    """One way's value at one place of the axis, over tasks; accuracies and recalls in [0, 1].

    `measured` names the value (see `Record.values`). `spread` is the standard deviation over tasks and
    `interval` the mean's at 95 %; None with fewer than two tasks.
    """

    x: X
    way: Way
    measured: str
    mean: float
    spread: float | None
    interval: Interval | None
    tasks: int
    seeds: int


@dataclass(frozen=True)
class Line:
    """What a figure draws as one: a name and its points, in the order of the experiment."""

    name: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Comparison:
    """A point held against another: the mean paired difference over the tasks that both have.

    `differing` counts the tasks whose difference is not zero; with fewer than FEWEST_PAIRS of them `test`
    is "too few" and there is no p. `corrected` is p after Holm, within the experiment. `verdict` says
    above or below where that is under 0.05; "same" where no task differs; else "alike" where the whole
    interval lies within ALIKE; "too few" where so many differing tasks could not have reached 0.05 beside
    what the others came to; "unclear" where the interval leaves out zero; and "not shown" where it does
    not, which is no proof that there is no difference.
    """

    line: str
    point: Point
    against: str
    against_point: Point
    difference: float
    interval: Interval | None
    tasks: int
    seeds: int
    differing: int
    test: str
    p: float | None
    corrected: float | None = None
    verdict: Verdict = "too few"


NOT_RUN = "not run"


@dataclass(frozen=True)
class Gap:
    """Cells of one way that give no number, and why: an error, a value not measured, or not run."""

    line: str
    why: str
    cells: tuple[str, ...]
    """"task (seed)" of each."""
    failed: bool
    whole: bool = False
    """Whether nothing of this way was run."""


@dataclass(frozen=True)
class Result:
    """An experiment in numbers. What is missing is in `gaps`, never dropped without a word."""

    experiment: Experiment
    lines: tuple[Line, ...]
    comparisons: tuple[Comparison, ...]
    gaps: tuple[Gap, ...]
    by_lot: float | None = None
    """Of recalls: the mean that neighbours by lot would have on the same tasks; None if not known."""

    @property
    def points(self) -> list[Point]:
        """All points of all lines."""
        return [point for line in self.lines for point in line.points]

    def counted(self, what: Literal["tasks", "seeds"]) -> str:
        """How many tasks or seeds the points have: "12 tasks", or "9 to 12 tasks"."""
        found = [getattr(point, what) for point in self.points] or [0]
        return counted(min(found), max(found), what)


def counted(least: int, most: int, what: str) -> str:
    """ "12 tasks", "1 seed", "9 to 12 tasks"."""
    if least != most:
        return f"{least} to {most} {what}"
    return f"{most} {what if most != 1 else what.removesuffix('s')}"


def result_of(experiment: Experiment, records: Iterable[Record], by_lot: Values | None = None) -> Result:
    """The numbers of an experiment, from the records of a run, of which it takes those that are its own.

    `by_lot` are the recalls that lots would come to (see `simulations.lots`), of any tasks. InputError
    where two of its ways would be drawn as the same point.
    """
    own = records_of(experiment, records)
    slots = _slots(experiment, own)
    lines: dict[str, list[Point]] = {}
    values = {}
    for name, x, way, measured in slots:
        found = values_of(own, way, measured)
        if found:
            values[name, x] = found
            lines.setdefault(name, []).append(_point(x, way, measured, found))
    drawn = tuple(Line(name, tuple(points)) for name, points in lines.items())
    pairs = [
        compare(line.name, point, values[line.name, point.x], *other, values[other[0], other[1].x])
        for line in drawn
        for point in line.points
        if (other := _counterpart(experiment, drawn, line, point)) is not None
    ]
    return Result(
        experiment,
        drawn,
        tuple(judged(pairs)),
        tuple(_gaps(experiment, slots, own)),
        _by_lot(experiment, own, by_lot or {}),
    )


def _by_lot(experiment: Experiment, records: Sequence[Record], by_lot: Values) -> float | None:
    tasks = {(record.seed, record.task) for record in records if record.error is None}
    if experiment.value != "recall" or not tasks or not tasks <= by_lot.keys():
        return None
    return float(over_tasks({key: by_lot[key] for key in tasks}).mean())


def records_of(experiment: Experiment, records: Iterable[Record]) -> list[Record]:
    """Those of its ways, on tasks of its kinds (a task's name begins with its kind and seed)."""
    kinds = re.compile(rf"({'|'.join(experiment.tasks)})\d")
    ways = {experiment.against, *experiment.ways}
    return [record for record in records if record.way in ways and kinds.match(record.task)]


def values_of(records: Iterable[Record], way: Way, measured: str) -> dict[tuple[int, str], float]:
    """What a way came to, by seed and task; values that are not numbers are left out."""
    found = {(r.seed, r.task): r.values.get(measured, math.nan) for r in records if r.way == way}
    return {key: value for key, value in found.items() if math.isfinite(value)}


def over_tasks(values: Values) -> np.ndarray:
    """One value a task: the mean over its seeds, in the order of tasks' names."""
    by_task: dict[str, list[float]] = {}
    for (_, task), value in values.items():
        by_task.setdefault(task, []).append(value)
    return np.array([np.mean(by_task[task]) for task in sorted(by_task)])


def interval_of(values: np.ndarray) -> Interval | None:
    """Student's 95 % interval of the mean; None for fewer than two values."""
    if len(values) < 2:
        return None
    half = float(
        t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    )
    return float(values.mean()) - half, float(values.mean()) + half


def compare(
    line: str, point: Point, values: Values, against: str, against_point: Point, others: Values
) -> Comparison:
    """The paired comparison of two ways, not yet corrected or judged."""
    both = {key: values[key] - others[key] for key in values if key in others}
    # Equal differences stay equal: the test ranks them, and a rounding error would break the tie.
    each = over_tasks(both).round(9)
    differing = int(np.count_nonzero(each))
    enough = differing >= FEWEST_PAIRS
    return Comparison(
        line,
        point,
        against,
        against_point,
        float(each.mean()) if len(each) else math.nan,
        interval_of(each),
        len(each),
        len({seed for seed, _ in both}),
        differing,
        "Wilcoxon signed-rank" if enough else "too few",
        signed_rank_p(each[each != 0]) if enough else None,
    )


def judged(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons of one experiment with p corrected by Holm, and what each says."""
    tested = [c for c in comparisons if c.p is not None]
    corrected = dict(zip(map(id, tested), holm([c.p for c in tested if c.p is not None]), strict=True))
    found = []
    for c in comparisons:
        others = [other.p for other in tested if other is not c and other.p is not None]
        p = corrected.get(id(c))
        found.append(replace(c, corrected=p, verdict=_verdict(replace(c, corrected=p), others)))
    return found


def _verdict(c: Comparison, others: Sequence[float]) -> Verdict:
    """What a corrected comparison says, beside the uncorrected p of the experiment's others."""
    low, high = c.interval or (-math.inf, math.inf)
    if c.corrected is not None and c.corrected < 1 - CONFIDENCE:
        return "above" if c.difference > 0 else "below"
    if c.tasks >= FEWEST_PAIRS and not c.differing:
        return "same"
    if c.tasks >= FEWEST_PAIRS and low >= -ALIKE and high <= ALIKE:
        return "alike"
    # The least p that signed ranks of so many tasks can give.
    if c.p is None or holm([2.0 ** (1 - c.differing), *others])[0] >= 1 - CONFIDENCE:
        return "too few"
    return "not shown" if low <= 0 <= high else "unclear"


Slot = tuple[str, X, Way, str]
"""A place of the figure: line, x, and the way and value that are measured there."""


def _slots(experiment: Experiment, records: Sequence[Record]) -> list[Slot]:
    slots: list[Slot] = []
    for way in dict.fromkeys((*experiment.ways, experiment.against)):
        name = experiment.line(way)
        if experiment.x == "iterations":
            points = [(k, f"at {k}") for k in experiment.evaluate_at if k < way.iterations]
            if any(values_of(records, way, measured) for _, measured in points):
                slots += [(name, k, way, measured) for k, measured in points]
            slots.append((name, way.iterations, way, "after"))
        else:
            x = None if experiment.x == "way" else getattr(way, experiment.x)
            slots.append((name, x, way, _measured(experiment, way, records)))
    taken: dict[tuple[str, X], Way] = {}
    for name, x, way, _ in slots:
        if taken.setdefault((name, x), way) != way:
            raise InputError(
                f"experiment {experiment.name} draws {way} and {taken[name, x]} both as {name!r} at {x}; "
                "give its lines names that tell them apart"
            )
    return slots


def _measured(experiment: Experiment, way: Way, records: Sequence[Record]) -> str:
    """The experiment's value; what a way came to in the end where it is never measured so early."""
    early = experiment.value.startswith("at ")
    if early and not values_of(records, way, experiment.value) and values_of(records, way, "after"):
        return "after"
    return experiment.value


def _point(x: X, way: Way, measured: str, values: Values) -> Point:
    each = over_tasks(values)
    return Point(
        x,
        way,
        measured,
        float(each.mean()),
        float(each.std(ddof=1)) if len(each) > 1 else None,
        interval_of(each),
        len(each),
        len({seed for seed, _ in values}),
    )


def _counterpart(
    experiment: Experiment, lines: Sequence[Line], line: Line, point: Point
) -> tuple[str, Point] | None:
    """What a point is held against: the baseline's line at the same x, else the baseline itself.

    Its own line is held against it where the axis is what varies; along a tuning it is not.
    """
    name = experiment.line(experiment.against)
    base = next((found.points for found in lines if found.name == name), ())
    if line.name != name:
        there = [p for p in base if p.x == point.x]
    elif experiment.x == "iterations":
        return None
    else:
        there = []
    itself = [p for p in base if p.way == experiment.against]
    chosen = (there or itself)[-1:]
    return (name, chosen[0]) if chosen and chosen[0] != point else None


def _gaps(experiment: Experiment, slots: Sequence[Slot], records: Sequence[Record]) -> list[Gap]:
    """Failed cells by error, then values that cells lack, then tasks that only other ways have."""
    everywhere = {(record.seed, record.task) for record in records}
    gaps: dict[tuple[str, str, bool], list[tuple[int, str]]] = {}
    for name, x, way, measured in slots:
        own = {(r.seed, r.task): r for r in records if r.way == way}
        place = name if experiment.x in ("way", "iterations") else f"{name}, {experiment.x} {x}"
        for key in sorted(everywhere):
            record = own.get(key)
            if record is None:
                gaps.setdefault((place, NOT_RUN, False), []).append(key)
            elif record.error is not None:
                gaps.setdefault((place, record.error, True), []).append(key)
            elif not math.isfinite(record.values.get(measured, math.nan)):
                gaps.setdefault((place, f"has no value {measured!r}", False), []).append(key)
    return [
        Gap(
            line,
            why,
            tuple(f"{task} (seed {seed})" for seed, task in dict.fromkeys(keys)),
            failed,
            whole=why == NOT_RUN and len(set(keys)) == len(everywhere),
        )
        for (line, why, failed), keys in gaps.items()
    ]
