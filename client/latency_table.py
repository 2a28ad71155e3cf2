"""A device's latency table in a file: what was measured, how, and on which device."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from client.processor import processor
from common.budget import LatencyTable
from common.errors import InputError, MismatchError
from common.files import read_whole, write_whole

FORMAT = 2
WITHOUT_ROUNDS = 1
"""The format of tables whose sizes were measured once each; it is read still."""

RuntimeName = Literal["torch", "onnx"]
RUNTIME_NAMES: tuple[RuntimeName, ...] = get_args(RuntimeName)
"""What can run the networks that are measured; `client.benchmark` runs them."""


@dataclass(frozen=True)
class Device:
    """What a measurement depends on: the processor, the threads, and the runtime with its version."""

    machine: str
    processor: str
    threads: int
    runtime: str

    @classmethod
    def here(cls, runtime: str, threads: int) -> Device:
        """This device."""
        return cls(platform.machine(), processor(), threads, runtime)

    def __str__(self) -> str:
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{self.processor or self.machine} ({self.machine}), {threads}, {self.runtime}"


@dataclass(frozen=True)
class MeasuredTable:
    """A latency table, the multiple of channels that this device's kernels like, and where that holds.

    `rounds` are the milliseconds that were measured for each of the table's points, round by round: the
    table is made of the least of each, so that it rises. Tables of earlier versions have none.
    """

    latency: LatencyTable
    multiple: int
    device: Device
    rounds: tuple[tuple[float, ...], ...] = ()


def write_latency_table(path: Path, table: MeasuredTable) -> None:
    """Write a table as JSON. InputError where it cannot be written; it is there whole or not at all."""
    data = {"format": FORMAT, "multiple": table.multiple, "device": asdict(table.device)}
    latency = {
        "structure": table.latency.structure,
        "points": table.latency.points,
        "rounds": table.rounds,
    }
    write_whole(path, json.dumps(data | latency, indent=1).encode())


def read_latency_table(path: Path) -> MeasuredTable:
    """The table in a file of `write_latency_table`, measured on this very device.

    InputError where the file cannot be read or is no table; MismatchError where it was measured on
    another processor. Whether it is of the right structure is seen where it is used.
    """
    text = bytes(read_whole(path))
    try:
        data = json.loads(text)
        if data["format"] not in (FORMAT, WITHOUT_ROUNDS):
            raise InputError(
                f"its format is {data['format']!r}, this version of maskvote reads {WITHOUT_ROUNDS} and "
                f"{FORMAT}; measure it anew with `maskvote-client benchmark`"
            )
        table = MeasuredTable(
            LatencyTable(data["structure"], tuple((int(at), float(ms)) for at, ms in data["points"])),
            int(data["multiple"]),
            Device(**data["device"]),
            tuple(tuple(map(float, of_size)) for of_size in data.get("rounds", ())),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is no latency table ({_reason(error)}); write one with `maskvote-client benchmark`"
        ) from error
    here = Device.here(table.device.runtime, table.device.threads)
    if (here.machine, here.processor) != (table.device.machine, table.device.processor):
        raise MismatchError(
            f"{path} was measured on another device, {table.device}; this one is {here.processor} "
            f"({here.machine}): measure it with `maskvote-client benchmark`"
        )
    return table


def _reason(error: Exception) -> str:
    return f"it has no {error}" if isinstance(error, KeyError) else str(error)[:200]
