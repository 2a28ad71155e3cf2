"""Report of a Flower run: how each device ended, what it was sent and sent back, and what went wrong."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

from common.exchange import Neighbour, Origin

Stage = Literal["describing", "healing", "adapting", "adapted", "failed"]
"""A device describes its task, waits while its network is healed if it is ready to, adapts what it is
assigned, and ends in one of two ways."""

Failure = Literal["unreachable", "silent", "device", "refused", "server", "unfinished"]
"""Why a device failed: it has left; no reply came in time; it replied with an error; what it replied
was refused; the server could not serve it; the run ended first."""


@dataclass(frozen=True)
class DeviceOutcome:
    """One device of a run: what is known so far; None, zero and empty is what is not.

    `counts` are the units per group that the contributed mask keeps, and `parameters` what such a
    network has with the device's classifier; `held_parameters` is what the device's own has in the
    end, which with SMSP holds explored units as well. Bytes are those of our messages and networks;
    the probe's are apart, as a device needs it once in a library's life. Accuracies are in [0, 1], by
    iterations done.
    """

    node: int
    stage: Stage
    partition: int | None = None
    request: str | None = None
    classes: int | None = None
    origin: Origin | None = None
    neighbours: tuple[Neighbour, ...] = ()
    counts: tuple[int, ...] = ()
    parameters: int = 0
    held_parameters: int = 0
    bytes_down: int = 0
    bytes_up: int = 0
    probe_bytes: int = 0
    accuracies: Mapping[int, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    failure: Failure | None = None
    error: str | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more will come of this device in this run."""
        return self.stage in ("adapted", "failed")


@dataclass(frozen=True)
class FleetReport:
    """All devices of a run in the order they ended, and the library's entries before and after.

    `unserved` are nodes that were there but that the run ended before asking.
    """

    devices: tuple[DeviceOutcome, ...]
    entries_before: int
    entries_after: int
    unserved: int
    seconds: float

    @property
    def errors(self) -> dict[str, int]:
        """How many devices failed, by why."""
        return dict(Counter(device.failure for device in self.devices if device.failure is not None))

    def to_json(self) -> str:
        """The report as JSON: its fields by name, `errors` among them."""
        return json.dumps(asdict(self) | {"errors": self.errors}, indent=2)


HEADER = (
    f"{'node':>20}  {'neighbours':>10}  {'units':>7}  {'parameters':>11}  {'down':>11}  {'up':>8}  "
    f"{'before':>6}  {'after':>6}  {'seconds':>7}"
)
"""Columns of `row`."""


def row(device: DeviceOutcome) -> str:
    """A device that ended, as one line of a table; one that failed says why instead."""
    if device.failure is not None:
        return f"{device.node:>20}  {device.failure}: {device.error}"
    before, after = (pick(device.accuracies) for pick in (min, max))
    return (
        f"{device.node:>20}  {len(device.neighbours):>10}  {sum(device.counts):>7,}  "
        f"{device.parameters:>11,}  {device.bytes_down:>11,}  {device.bytes_up:>8,}  "
        f"{device.accuracies[before]:>6.1%}  {device.accuracies[after]:>6.1%}  "
        f"{sum(device.seconds.values()):>7.1f}"
    )
