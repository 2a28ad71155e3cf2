"""Budget: what a device can afford, and what a sub-network needs of it."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

from common.errors import BudgetError, MismatchError
from common.structure import Structure

MAX_COUNT = 2**63 - 1
"""What a 64-bit integer holds: no budget of bytes, parameters or operations is larger."""
MAX_MILLISECONDS = 86_400_000
MAX_HEADROOM = 1000
MAX_WAIT_SECONDS = 86_400
MAX_MULTIPLE = 1024
MAX_POINTS = 256

Counts = tuple[int, ...]
"""Units kept per group, in the structure's order."""


@dataclass(frozen=True)
class LatencyTable:
    """How long a device takes for one image, measured on it by `maskvote-client benchmark`.

    `points` are (floating-point operations per image, milliseconds) of sub-networks of one structure,
    whose digest this is, in the order of their operations: 1 to 256, all finite and above 0. Between
    two points time is interpolated, a larger network never counts as faster than a smaller one, and of
    what is larger than the largest that was measured nothing is known.
    """

    structure: str
    points: tuple[tuple[int, float], ...]

    def __post_init__(self) -> None:
        operations = [flops for flops, _ in self.points]
        if not 1 <= len(self.points) <= MAX_POINTS:
            raise BudgetError(
                f"the latency table has {len(self.points)} points; it has 1 to {MAX_POINTS}, measure anew"
            )
        if operations[0] < 1 or any(later <= flops for flops, later in pairwise(operations)):
            raise BudgetError(
                "the latency table's operations do not rise from 1; measure it anew with "
                "`maskvote-client benchmark`"
            )
        strange = [time for _, time in self.points if not 0 < time <= MAX_MILLISECONDS]
        if strange:
            raise BudgetError(
                f"the latency table has a time of {strange[0]} ms; it lies in 0 to "
                f"{MAX_MILLISECONDS:,}, measure it anew"
            )

    @property
    def least(self) -> float:
        """The milliseconds of the smallest network that was measured: nothing counts as faster."""
        return self.points[0][1]

    @property
    def most(self) -> float:
        """The milliseconds of the largest network that was measured, or of a slower one below it."""
        return max(time for _, time in self.points)

    def milliseconds(self, flops: int) -> float:
        """The time of a network of so many operations; infinite above the largest that was measured."""
        slowest, times = 0.0, []
        for _, time in self.points:
            slowest = max(slowest, time)
            times.append(slowest)
        above = bisect_right([at for at, _ in self.points], flops)
        if above == len(times):
            return times[-1] if flops == self.points[-1][0] else math.inf
        if above == 0:
            return times[0]
        (low, _), (high, _) = self.points[above - 1 : above + 1]
        share = (flops - low) / (high - low)
        return times[above - 1] + share * (times[above] - times[above - 1])


@dataclass(frozen=True)
class Budget:
    """What a device can afford: at least one of these limits, and all that are given hold at once.

    keep_ratio        share of the backbone's units, in (0, 1]
    parameters        of the whole network that the device ends with, its own classifier included
    flops             floating-point operations per image, two for a multiply-add
    weight_bytes      of all its tensors, as they are stored
    activation_bytes  of all activations that are alive at once while one image is classified, in float32
    latency_ms        milliseconds for one image, by the device's own `latency` table

    `multiple` is what the device's kernels like: widths in channels are multiples of it where groups
    are large enough, 1 for any. `headroom` is how many times the budget the device can hold while it
    adapts (1 to 1000): MVP starts larger and prunes down. `wait_seconds` is how long the device is ready
    to wait for its network to be healed for it alone (0 to 86,400); with 0 it takes what is there.
    """

    keep_ratio: float | None = None
    parameters: int | None = None
    headroom: float = 1.0
    wait_seconds: float = 0.0
    flops: int | None = None
    weight_bytes: int | None = None
    activation_bytes: int | None = None
    latency_ms: float | None = None
    latency: LatencyTable | None = None
    multiple: int = 1

    def __post_init__(self) -> None:
        limits = (self.keep_ratio, self.latency_ms, *self._counted.values())
        if all(limit is None for limit in limits):
            raise BudgetError(
                "a budget limits at least one of keep ratio, parameters, operations, bytes of weights or "
                "activations, and latency, and here is none; give one or several"
            )
        if self.keep_ratio is not None and not 0 < self.keep_ratio <= 1:
            raise BudgetError(f"the keep ratio is {self.keep_ratio}; it lies in (0, 1], and 10% is 0.1")
        for unit, limit in self._counted.items():
            if limit is not None and not 1 <= limit <= MAX_COUNT:
                raise BudgetError(f"the budget is {limit} {unit}; it lies in 1 to {MAX_COUNT}")
        if self.latency_ms is not None:
            if not 0 < self.latency_ms <= MAX_MILLISECONDS:
                raise BudgetError(
                    f"the budget is {self.latency_ms} ms; it lies in 0 to {MAX_MILLISECONDS:,}"
                )
            if self.latency is None:
                raise BudgetError(
                    f"the budget is {self.latency_ms:g} ms, and nobody knows what this device does in "
                    "that time; measure it with `maskvote-client benchmark` and give its table"
                )
            if self.latency_ms < self.latency.least:
                raise BudgetError(
                    f"the budget is {self.latency_ms:g} ms; the smallest network that was measured on "
                    f"this device, of {self.latency.points[0][0]:,} operations, takes "
                    f"{_upward(self.latency.least):g} ms: ask for at least that, or measure anew with "
                    "`maskvote-client benchmark`"
                )
        if not 1 <= self.multiple <= MAX_MULTIPLE:
            raise BudgetError(f"widths are to be multiples of {self.multiple}; give 1 to {MAX_MULTIPLE}")
        if not 1 <= self.headroom <= MAX_HEADROOM:
            raise BudgetError(f"the headroom is {self.headroom}; it lies in 1 to {MAX_HEADROOM}")
        if not 0 <= self.wait_seconds <= MAX_WAIT_SECONDS:
            raise BudgetError(
                f"the wait is {self.wait_seconds} seconds; it lies in 0, which takes what is there, to "
                f"{MAX_WAIT_SECONDS:,}"
            )

    @property
    def _counted(self) -> dict[str, int | None]:
        return {
            "parameters": self.parameters,
            "floating-point operations": self.flops,
            "bytes of weights": self.weight_bytes,
            "bytes of activations": self.activation_bytes,
        }

    @property
    def while_adapting(self) -> Budget:
        """The budget that the headroom allows while the device adapts."""

        def enlarged(limit: int | None) -> int | None:
            # Beyond 2**53 the product is rounded: it must neither shrink the budget nor pass the limit.
            return None if limit is None else min(max(limit, int(limit * self.headroom)), MAX_COUNT)

        ratio, time = self.keep_ratio, self.latency_ms
        if time is not None and self.latency is not None:
            # Beyond what was measured nothing is known, and it would be refused.
            time = max(time, min(time * self.headroom, self.latency.most))
        return replace(
            self,
            keep_ratio=None if ratio is None else min(1.0, ratio * self.headroom),
            parameters=enlarged(self.parameters),
            flops=enlarged(self.flops),
            weight_bytes=enlarged(self.weight_bytes),
            activation_bytes=enlarged(self.activation_bytes),
            latency_ms=time,
            headroom=1.0,
            wait_seconds=0.0,
        )


@dataclass(frozen=True)
class Demand:
    """One limit of a budget: what a sub-network needs of it, by its units per group, and what there is.

    What is needed never falls as units are added.
    """

    unit: str
    of: Callable[[Sequence[int]], float]
    limit: float

    def fits(self, kept: Sequence[int]) -> bool:
        """Whether a sub-network of so many units per group is within the limit."""
        return self.of(kept) <= self.limit

    def told(self, amount: float) -> str:
        """An amount with its unit: "1,234 parameters", "12.5 ms"."""
        return f"{amount:,.4g} ms" if self.unit == "ms" else f"{math.ceil(amount):,} {self.unit}"


def demands(structure: Structure, budget: Budget, classes: int) -> list[Demand]:
    """Every limit of a budget, as it is measured on sub-networks of a structure for so many classes.

    Raises MismatchError for a latency table of another structure, BudgetError for a limit that this
    structure cannot tell.
    """
    return list(_demands(structure, budget, classes))


def _demands(structure: Structure, budget: Budget, classes: int) -> Iterator[Demand]:
    if budget.keep_ratio is not None:
        # The tiny share guards against 0.1 * 1920 being 191.99999999999997.
        yield Demand("units", sum, int(budget.keep_ratio * structure.units + 1e-6))
    for unit, limit, cost in (
        ("parameters", budget.parameters, structure.parameters),
        ("floating-point operations", budget.flops, structure.flops),
        ("bytes of weights", budget.weight_bytes, structure.weight_bytes),
        ("bytes of activations", budget.activation_bytes, structure.activation_bytes),
    ):
        if limit is not None:
            yield Demand(unit, partial(cost, classes=classes), limit)
    if budget.latency_ms is not None:
        table = budget.latency
        assert table is not None
        if table.structure != structure.digest:
            raise MismatchError(
                f"the latency table was measured on sub-networks of structure {table.structure[:12]}, "
                f"this library's is {structure.digest[:12]}; measure one with `maskvote-client benchmark`"
            )
        yield Demand(
            "ms", lambda kept: table.milliseconds(structure.flops(kept, classes)), budget.latency_ms
        )


def check_feasible(structure: Structure, budget: Budget, classes: int) -> None:
    """Raise BudgetError where not even the smallest sub-network is within the budget: it says what is.

    Likewise where the budget is more time than the largest network took that was measured, and that one
    was smaller than the whole backbone.
    """
    smallest = structure.smallest
    for demand in demands(structure, budget, classes):
        least = demand.of(smallest)
        if least <= demand.limit:
            if demand.unit == "ms":
                _check_measured(structure, budget, classes)
            continue
        enough = demand.told(least)
        if demand.unit == "units":
            enough = f"a keep ratio of {math.ceil(1e6 * least / structure.units) / 1e6:g}"
        elif math.isinf(least):
            raise BudgetError(
                "the latency table tells nothing of networks as small as the smallest sub-network of "
                f"{structure.model.get('model')}; measure it anew with `maskvote-client benchmark`"
            )
        elif demand.unit == "ms":
            enough = f"{_upward(least):g} ms"
        raise BudgetError(
            f"the budget is {demand.told(demand.limit)}, the smallest sub-network of "
            f"{structure.model.get('model')} needs {demand.told(least)}; ask for at least {enough}"
        )


def _check_measured(structure: Structure, budget: Budget, classes: int) -> None:
    table, whole = budget.latency, structure.flops(classes=classes)
    assert table is not None
    assert budget.latency_ms is not None
    largest = table.points[-1][0]
    if budget.latency_ms > table.most and largest < whole:
        raise BudgetError(
            f"the budget is {budget.latency_ms:g} ms; the largest network that was measured on this "
            f"device, of {largest:,} operations, takes {_downward(table.most):g} ms, and of larger ones, "
            f"up to the {whole:,} operations of the whole {structure.model.get('model')} for {classes} "
            "classes, nothing is known: ask for at most that, or measure anew with `maskvote-client "
            "benchmark`"
        )


def _upward(milliseconds: float) -> float:
    """Four digits of a time, rounded so that whoever asks for it gets it."""
    return _to_four_digits(milliseconds, math.ceil)


def _downward(milliseconds: float) -> float:
    return _to_four_digits(milliseconds, math.floor)


def _to_four_digits(number: float, rounded: Callable[[float], int]) -> float:
    scale = 10.0 ** (3 - math.floor(math.log10(number)))
    return rounded(number * scale) / scale
