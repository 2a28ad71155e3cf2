"""Claims: the numbers that this project set out to reach, held against what a run measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
from scipy.stats import t

from simulations.baselines import MASKS
from simulations.experiments.criteria import SERVED, SERVED_HEALED
from simulations.experiments.experiment import Tasks
from simulations.experiments.retrieval import KINDS
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
EARLY_ITERATIONS = 25
EARLY = f"at {EARLY_ITERATIONS}"
MARGIN = 0.03
LARGE_LIBRARY = 200
GAP_CLOSED = 0.5
RECALL_KEPT = 0.9
EPSILON, IMAGES = 8.0, 50
OWN_DOMAIN: tuple[Tasks, ...] = ("new", "five")
"""Kinds of tasks of the photographs' own domain, as most of a library's tasks."""
VOTES: tuple[str, ...] = ("SMSP", "SMSP and importance")
"""The paper's, and with the prior that a server has by default that was not healed."""
HEALED = Way("L1", KEPT, healing="empty")
"""The nearest to what a healed server sends of the ways that vary one thing at a time."""
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
    records: Sequence[Record],
    library_tasks: int | None = None,
    images: int | None = None,
    by_lot: Values | None = None,
) -> list[Claim]:
    """Every number to reach, once for each healing that was measured.

    All sides of one that is about few iterations have the same length of tuning, which its words name;
    as they name a healing's length that is not the run's own. `library_tasks` and `images` are the run's:
    what a way means that asks for all of them. `by_lot` are the recalls that lots would come to (see
    `simulations.lots`); claims about signatures are not measured without them.
    """
    new = [record for record in records if record.task.startswith("new")]
    found: list[Claim] = []
    library_helps = partial(_library_helps, library_tasks=library_tasks)
    ways = [Way(mask, KEPT, healing=healing) for mask in VOTES for healing in HEALINGS] + [HEALED]
    for claim in (_as_good_as_iterative, _above_criteria, library_helps):
        # Of several tunings the one on most tasks, and of these the first.
        each = [[claim(new, tuning) for tuning in _tunings(new, way)] for way in ways]
        best = [max(claims, key=lambda c: c.tasks) for claims in each if claims]
        measured = [c for c in best if c.value is not None]
        found += measured or [claim(new, replace(ways[0], iterations=EARLY_ITERATIONS))]
    return [*_confirmed(records), *found, *_retrievals(records, images, by_lot or {})]


def _confirmed(records: Sequence[Record]) -> list[Claim]:
    """The numbers that devices come to, on tasks that had no part in choosing what they are served."""
    fresh = [record for record in records if record.task.startswith("fresh")]
    if not fresh:
        return []
    served = (SERVED_HEALED, SERVED)
    claims = [claim(fresh, way) for claim in (_as_good_as_iterative, _above_criteria) for way in served]
    return [replace(c, text=f"On tasks by which nothing was chosen, {c.text}") for c in claims]


def _tunings(records: Iterable[Record], way: Way) -> list[Way]:
    """This way in all lengths of its tuning and of its healing that were measured.

    The nearest to its own tuning come first, of these what was healed as the run says, then the longest.
    """
    lengths = {
        (known.iterations, known.healing_iterations)
        for known in {record.way for record in records}
        if replace(known, iterations=way.iterations, healing_iterations=None, entries=None) == way
    }
    ordered = sorted(
        lengths,
        key=lambda length: (
            abs(length[0] - way.iterations),
            -math.inf if length[1] is None else -length[1],
        ),
    )
    return [replace(way, iterations=tuned, healing_iterations=healed) for tuned, healed in ordered]


def _as_good_as_iterative(records: Sequence[Record], way: Way) -> Claim:
    ours = values_of(records, way, "after") if 0 < way.iterations <= MOST_ITERATIONS else {}
    return _margin(
        f"{_name(way)} with {way.iterations} iterations on the device (at most {MOST_ITERATIONS}) is at "
        f"least as accurate as iterative pruning with {CONVENTIONAL}",
        0.0,
        ours,
        values_of(records, Way("iterative", KEPT, CONVENTIONAL), "after"),
    )


def _above_criteria(records: Sequence[Record], way: Way) -> Claim:
    ours = values_of(records, way, EARLY)
    others = {mask: values_of(records, Way(mask, KEPT, way.iterations), EARLY) for mask in MASKS}
    margins = {mask: _margin("", MARGIN, ours, theirs) for mask, theirs in others.items()}
    measured = {mask: claim for mask, claim in margins.items() if claim.value is not None}
    text = f"{_name(way)} is at least {100 * MARGIN:.0f} points above the best one-shot criterion"
    if not measured:
        return Claim(f"{text} {_early(way)}", MARGIN, "points")
    # The best on the tasks that most of them share with ours.
    best = max(measured, key=lambda mask: (measured[mask].tasks, -(measured[mask].value or 0)))
    return replace(measured[best], text=f"{text} ({best}, of {len(measured)}) {_early(way)}")


def _library_helps(records: Sequence[Record], way: Way, library_tasks: int | None) -> Claim:
    text = (
        f"{_name(way)}: a library of {LARGE_LIBRARY} tasks against an empty one closes at least half of "
        f"the gap between the L1 mask and dense fine-tuning, {_early(way)}"
    )

    def of(entries: int | None, healing: Healing) -> Values:
        return values_of(records, replace(way, entries=entries, healing=healing), EARLY)

    large: Values = {}
    if library_tasks is None or library_tasks >= LARGE_LIBRARY:
        large = of(LARGE_LIBRARY, way.healing)
    if not large and library_tasks == LARGE_LIBRARY:
        large = of(None, way.healing)
    # An operator without a library can heal as well, for what an empty one would assign.
    empty = of(0, "empty" if way.healing == "library" else way.healing)
    low, high = (values_of(records, Way(m, KEPT, way.iterations), EARLY) for m in ("L1", "dense"))
    both = [key for key in large if key in empty and key in low and key in high]
    gains = {key: large[key] - empty[key] for key in both}
    return _share(text, GAP_CLOSED, gains, {key: high[key] - low[key] for key in both})


def _name(way: Way) -> str:
    """How claims call a way: with the length of its healing where it is not the run's own."""
    healed = way.healing_iterations
    return way.name if healed is None else f"{way.name} ({healed:,} iterations of healing)"


def _early(way: Way) -> str:
    """When the claims about few iterations are made: the rate falls over the whole of a tuning, so that
    its middle is not the end of a shorter one.
    """
    whole = "" if way.iterations == EARLY_ITERATIONS else f" of {way.iterations}"
    return f"after {EARLY_ITERATIONS}{whole} iterations"


def _retrievals(records: Sequence[Record], images: int | None, by_lot: Values) -> list[Claim]:
    """What signatures find, for each kind of tasks: what lots would find as well is not their doing.

    In another domain they find so little more that it has no share to keep: there, the claim is that
    they find more at all.
    """
    private = Way("neighbours", epsilon=EPSILON, images=IMAGES)
    if images == IMAGES and not values_of(records, private, "recall"):
        private = replace(private, images=None)
    probe = "Signatures of the small probe"
    noisy = f"Signatures at epsilon {EPSILON:.0f} and {IMAGES} images a class"
    sides = [
        (probe, Way("neighbours"), "the whole backbone's recall", Way("neighbours", probe="backbone")),
        (noisy, private, "the recall without noise", replace(private, epsilon=0.0)),
    ]

    def above_lots(way: Way, kind: Tasks) -> Values:
        found = values_of(records, way, "recall")
        return {k: found[k] - by_lot[k] for k in found if k in by_lot and k[1].startswith(kind)}

    claims = []
    for name, way, whole, other in sides:
        for kind in OWN_DOMAIN:
            ours, theirs = above_lots(way, kind), above_lots(other, kind)
            text = f"{name} keep at least 90 % of what {whole} has above lots, for tasks {KINDS[kind]}"
            claims.append(_share(text, RECALL_KEPT, _shared(ours, theirs), _shared(theirs, ours)))
        text = f"{name} have a higher recall than lots for tasks {KINDS['shifted']}"
        ours = above_lots(way, "shifted")
        claims.append(_margin(text, 0.0, ours, dict.fromkeys(ours, 0.0)))
    return claims


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
