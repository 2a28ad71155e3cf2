"""Claims: the numbers that this project set out to reach, held against what a run measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
from scipy.stats import t

from simulations.baselines import MASKS
from simulations.records import Record
from simulations.statistics import (
    CONFIDENCE,
    FEWEST_PAIRS,
    Interval,
    Values,
    interval_of,
    over_tasks,
    values_of,
)
from simulations.way import Healing, Way

Holds = Literal["yes", "no", "unclear", "not measured"]

KEPT = 0.1
"""Share of the units at which the claims are made."""
MOST_ITERATIONS, CONVENTIONAL = 60, 600
"""On the device: of the vote at most, and of conventional iterative pruning."""
EARLY = "at 25"
MARGIN = 0.03
LARGE_LIBRARY = 200
GAP_CLOSED = 0.5
RECALL_KEPT = 0.9
EPSILON, IMAGES = 8.0, 50
VOTES: tuple[str, ...] = ("SMSP", "SMSP and importance")
"""The paper's, and what a server does by default that was not healed."""
HEALED = Way("L1", KEPT, healing="empty")
"""What a healed server does by default: importance elects."""
HEALINGS: tuple[Healing, ...] = ("none", "library", "empty", "mask", "nearest")


@dataclass(frozen=True)
class Claim:
    """A number to reach: `value` has to be at least `target`, both in `unit` (a share of 1 in both).

    It holds, "yes", where the whole 95 % interval does; "no" where none of it does; "unclear" where the
    interval straddles the target, or where there are fewer than FEWEST_PAIRS tasks.
    """

    text: str
    target: float
    unit: Literal["points", "share"]
    value: float | None = None
    interval: Interval | None = None
    tasks: int = 0
    seeds: int = 0

    @property
    def holds(self) -> Holds:
        """Whether it does, as far as the measurement tells."""
        if self.value is None:
            return "not measured"
        if self.interval is None or self.tasks < FEWEST_PAIRS:
            return "unclear"
        low, high = self.interval
        return "yes" if low >= self.target else "no" if high < self.target else "unclear"


def claims_of(
    records: Sequence[Record], library_tasks: int | None = None, images: int | None = None
) -> list[Claim]:
    """Every number to reach, once for each healing that was measured.

    `library_tasks` and `images` are the run's: what a way means that asks for all of them.
    """
    new = [record for record in records if record.task.startswith("new")]
    found: list[Claim] = []
    library_helps = partial(_library_helps, library_tasks=library_tasks)
    ways = [Way(mask, KEPT, healing=healing) for mask in VOTES for healing in HEALINGS] + [HEALED]
    for claim in (_as_good_as_iterative, _above_criteria, library_helps):
        measured = [c for way in ways if (c := claim(new, way)).value is not None]
        found += measured or [claim(new, ways[0])]
    return [*found, _probe_recall(records), _private_recall(records, images)]


def _as_good_as_iterative(records: Sequence[Record], ours_is: Way) -> Claim:
    theirs = _values(records, "iterative", "after", "none", lambda way: way.iterations == CONVENTIONAL)
    ours = _values(
        records,
        ours_is.mask,
        "after",
        ours_is.healing,
        lambda way: 0 < way.iterations <= MOST_ITERATIONS,
        theirs,
    )
    name = ours_is.name
    return _margin(
        f"{name} with at most {MOST_ITERATIONS} iterations on the device is at least as accurate as "
        f"iterative pruning with {CONVENTIONAL}",
        0.0,
        ours,
        theirs,
    )


def _above_criteria(records: Sequence[Record], ours_is: Way) -> Claim:
    ours = _values(records, ours_is.mask, EARLY, ours_is.healing)
    others = {
        mask: shared
        for mask in MASKS
        if (shared := _shared(_values(records, mask, EARLY, "none", among=ours), ours))
    }
    best = max(others, key=lambda mask: over_tasks(others[mask]).mean(), default=None)
    name = ours_is.name
    return _margin(
        f"{name} is at least {100 * MARGIN:.0f} points above the best one-shot criterion"
        f"{f' ({best})' if best else ''} after 25 iterations",
        MARGIN,
        ours,
        others[best] if best else {},
    )


def _library_helps(records: Sequence[Record], ours_is: Way, library_tasks: int | None) -> Claim:
    name = ours_is.name
    text = (
        f"{name}: a library of {LARGE_LIBRARY} tasks against an empty one closes at least half of the "
        "gap between the L1 mask and dense fine-tuning, after 25 iterations"
    )

    def of(entries: int, healing: Healing) -> Values:
        sized = [
            replace(r, way=replace(r.way, entries=None)) for r in records if r.way.entries == entries
        ]
        return _values(sized, ours_is.mask, EARLY, healing)

    large: Values = {}
    if library_tasks is None or library_tasks >= LARGE_LIBRARY:
        large = of(LARGE_LIBRARY, ours_is.healing)
    if not large and library_tasks == LARGE_LIBRARY:
        large = _values(records, ours_is.mask, EARLY, ours_is.healing)
    # An operator without a library can heal as well, for what an empty one would assign.
    empty = of(0, "empty" if ours_is.healing == "library" else ours_is.healing)
    low, high = (_values(records, mask, EARLY, "none", among=large) for mask in ("L1", "dense"))
    both = [key for key in large if key in empty and key in low and key in high]
    gains = {key: large[key] - empty[key] for key in both}
    return _share(text, GAP_CLOSED, gains, {key: high[key] - low[key] for key in both})


def _probe_recall(records: Sequence[Record]) -> Claim:
    return _recall(
        "Signatures of the small probe keep at least 90 % of the whole backbone's recall of the nearest "
        "tasks",
        records,
        Way("neighbours"),
        Way("neighbours", probe="backbone"),
    )


def _private_recall(records: Sequence[Record], images: int | None) -> Claim:
    private = Way("neighbours", epsilon=EPSILON, images=IMAGES)
    if images == IMAGES and not values_of(records, private, "recall"):
        private = replace(private, images=None)
    return _recall(
        f"Signatures at epsilon {EPSILON:.0f} and {IMAGES} images a class keep at least 90 % of the "
        "recall without noise",
        records,
        private,
        replace(private, epsilon=0.0),
    )


def _recall(text: str, records: Sequence[Record], way: Way, other: Way) -> Claim:
    ours, theirs = values_of(records, way, "recall"), values_of(records, other, "recall")
    return _share(text, RECALL_KEPT, _shared(ours, theirs), _shared(theirs, ours))


def _values(
    records: Iterable[Record],
    mask: str,
    measured: str,
    healing: Healing,
    wanted: Callable[[Way], bool] = lambda way: True,
    among: Values | None = None,
) -> Values:
    """The values of the way with this mask and healing, at KEPT and with the defaults in all that votes.

    Where several tunings were measured: the one on most tasks (of those `among` which they are compared),
    then the nearest to the default length, then the one that was healed as the run says, or longest.
    """
    own = list(records)
    known = {record.way for record in own if record.way.mask == mask and record.way.healing == healing}
    plain = Way(mask, KEPT, healing=healing)
    found = [
        (
            len(values if among is None else _shared(values, among)),
            -abs(way.iterations - plain.iterations),
            math.inf if way.healing_iterations is None else way.healing_iterations,
            values,
        )
        for way in known
        if replace(
            way,
            iterations=plain.iterations,
            learning_rate=plain.learning_rate,
            healing_iterations=plain.healing_iterations,
        )
        == plain
        and wanted(way)
        and (values := values_of(own, way, measured))
    ]
    return max(found, key=lambda known: known[:3], default=(0, 0, 0, {}))[3]


def _shared(values: Values, others: Values) -> Values:
    return {key: value for key, value in values.items() if key in others}


def _margin(text: str, target: float, ours: Values, theirs: Values) -> Claim:
    """The claim that ours are above theirs by so much, task by task."""
    claim = Claim(text, target, "points")
    both = {key: ours[key] - theirs[key] for key in ours if key in theirs}
    if not both:
        return claim
    each = over_tasks(both)
    return _measured(claim, float(each.mean()), interval_of(each), both)


def _share(text: str, target: float, parts: Values, wholes: Values) -> Claim:
    """The claim that the mean part is so large a share of the mean whole.

    The interval is that of a ratio of paired means (delta method): of part less share x whole.
    """
    claim = Claim(text, target, "share")
    part, whole = over_tasks(parts), over_tasks(wholes)
    if not len(whole) or whole.mean() <= 0:
        return claim
    share = float(part.mean() / whole.mean())
    interval = None
    if len(part) > 1:
        rest = (part - share * whole).std(ddof=1) / math.sqrt(len(part)) / whole.mean()
        half = float(t.ppf((1 + CONFIDENCE) / 2, len(part) - 1) * np.abs(rest))
        interval = (share - half, share + half)
    return _measured(claim, share, interval, parts)


def _measured(claim: Claim, value: float, interval: Interval | None, values: Values) -> Claim:
    tasks, seeds = len({task for _, task in values}), len({seed for seed, _ in values})
    return replace(claim, value=value, interval=interval, tasks=tasks, seeds=seeds)
