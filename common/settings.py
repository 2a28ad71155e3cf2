"""Settings of a Flower run: what its server and its devices are told, each with a default and a reason.

A run's configuration is one flat table that both sides read: a key is a field's name with hyphens.
Text that is empty and paths that are not given are the same there, as TOML has no null.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from common.budget import Budget
from common.errors import InputError
from common.exchange import METHODS, Method
from common.privacy import DEFAULT_DELTA, Privacy
from common.process_memory import MEGABYTE
from common.tuning_settings import FineTuneSettings, Precision, Tuned

Value = bool | int | float | str
Config = Mapping[str, Value]
"""Flower's run and node configuration: TOML scalars by key."""


@dataclass(frozen=True)
class FleetSettings:
    """What the server's side of a run is told. Raises InputError with every rule that is broken."""

    library: Path = Path()
    """The library's file, absolute: a ServerApp runs in its SuperLink's directory. Always to be given."""
    checkpoint: Path | None = None
    """Safetensors file of the backbone's weights; without it, those that timm publishes."""
    neighbours: int = 10
    """Tasks that vote: enough that no single one decides, few enough that they are near."""
    explore: float = 0.1
    """Share of an SMSP sub-network's units that are runners-up, for the library to learn from."""
    heal_images: Path | None = None
    """Public images, in a directory of any layout, to heal networks on for devices that are ready to
    wait; without it nobody waits."""
    heal_seconds: float = 120.0
    """For one network at most: longer than that, another device waits."""
    prior: float = 0.5
    """What the backbone's own importance is worth beside the votes; the papers have 0. A healed backbone
    knows its own."""
    devices: int = 0
    """Devices after which the run ends, failed ones too; 0 serves all that come."""
    at_once: int = 2
    """Devices in flight: the fewer, the more masks those after them profit from."""
    idle_seconds: float = 60.0
    """How long a run waits for a new node once nothing is in flight: a device may be starting."""
    max_seconds: float = 86_400.0
    """When the run ends in any case: a day, so that none is forgotten."""
    ttl_seconds: float = 3600.0
    """How long one message and its reply may take: an hour lets the slowest device tune."""
    poll_seconds: float = 0.5
    """Pause between looks for replies: SuperNodes look every 3 s themselves."""
    report: Path | None = None
    """Where to write the report as JSON; it is logged in any case."""

    def __post_init__(self) -> None:
        problems = _broken(
            (self.library != Path(), "library is not given; found one with `maskvote-server create`"),
            (self.neighbours >= 1, f"neighbours is {self.neighbours}; at least 1 votes"),
            (0 <= self.explore < 1, f"explore is {self.explore}; it is a share in [0, 1)"),
            (0 <= self.prior < math.inf, f"prior is {self.prior}; it is a number from 0"),
            (self.devices >= 0, f"devices is {self.devices}; give 0 for all that come"),
            (self.at_once >= 1, f"at-once is {self.at_once}; at least 1 is in flight"),
            (self.ttl_seconds != 0, "ttl-seconds is 0; a message needs some time to be answered"),
            (self.heal_seconds != 0, "heal-seconds is 0; leave heal-images out to heal nothing"),
        )
        for name in ("heal_seconds", "idle_seconds", "max_seconds", "ttl_seconds", "poll_seconds"):
            if not 0 <= getattr(self, name) < math.inf:
                problems.append(f"{_key(name)} is {getattr(self, name)}; it is a number from 0")
        _refuse(problems)


LIMITS = ("parameters", "flops", "weight_bytes", "activation_bytes")
"""Fields of DeviceSettings that are a budget instead of the keep ratio."""


@dataclass(frozen=True)
class DeviceSettings:
    """What devices are told, by the run or each by its own node. InputError lists what is broken."""

    data: Path | None = None
    """Directory of one ImageFolder task per device, chosen by partition: for simulations. A real
    device names its own data in its node configuration."""
    keep_ratio: float = 0.1
    """Budget: share of the backbone's units that the network keeps."""
    parameters: int = 0
    """Budget: parameters of the network. Where this or one of the next four is given, all of them hold
    and the keep ratio does not; 0 is no limit."""
    flops: int = 0
    """Budget: floating-point operations per image."""
    weight_bytes: int = 0
    """Budget: bytes of its tensors."""
    activation_bytes: int = 0
    """Budget: bytes of activations alive at once for one image."""
    multiple: int = 1
    """What widths in channels are to be multiples of."""
    headroom: float = 1.0
    """Times the budget that the device can hold while it adapts: 1 promises nothing."""
    wait_seconds: float = 0.0
    """How long the device is ready to wait for its network to be healed for it alone; 0 takes what is
    there."""
    method: Method = "smsp"
    """One-shot (smsp), or pruning on from a larger start (mvp), which needs headroom."""
    epsilon: float = 0.0
    """Noise makes the signature differentially private, the more so the smaller this is: 8 is a usual
    choice; 0 is no noise. See Privacy. A device that insists sets it in its own node configuration."""
    delta: float = DEFAULT_DELTA
    """Delta of that guarantee; see Privacy."""
    iterations: int = FineTuneSettings.iterations
    """Fine-tuning iterations; see FineTuneSettings."""
    learning_rate: float = FineTuneSettings.learning_rate
    """See FineTuneSettings."""
    evaluate_at: tuple[int, ...] = (10, 25, 50)
    """Iterations after which accuracy is measured, besides before and after: a curve at little cost."""
    seed: int = 0
    """Where a device's randomness comes from, together with its partition or the path of its data."""
    threads: int = 0
    """CPU threads; 0 leaves it to torch."""
    micro_batch: int = FineTuneSettings.micro_batch
    """See FineTuneSettings."""
    tune: Tuned = FineTuneSettings.tuned
    """All parameters or the head alone; see FineTuneSettings."""
    precision: Precision = FineTuneSettings.precision
    """See FineTuneSettings."""
    adapt_seconds: float = 0.0
    """How long a device's fitting, tuning and judging may take together; 0 is no limit."""
    adapt_megabytes: float = 0.0
    """What the process that adapts may hold in memory; 0 is no limit."""

    def __post_init__(self) -> None:
        problems = _broken(
            (self.method in METHODS, f"method is {self.method!r}; choose {' or '.join(METHODS)}"),
            (self.threads >= 0, f"threads is {self.threads}; give 0 for torch's own choice"),
            *(
                (value >= 0, f"{_key(name)} is {value}; give 0 for no such limit")
                for name, value in self._limits.items()
            ),
        )
        for value in (lambda: self.budget, lambda: self.privacy, lambda: self.fine_tuning):
            try:
                value()
            except InputError as error:
                problems.append(str(error))
        _refuse(problems)

    @property
    def budget(self) -> Budget:
        """What the device can afford."""
        return Budget(
            keep_ratio=None if any(self._limits.values()) else self.keep_ratio,
            parameters=self.parameters or None,
            flops=self.flops or None,
            weight_bytes=self.weight_bytes or None,
            activation_bytes=self.activation_bytes or None,
            headroom=self.headroom,
            wait_seconds=self.wait_seconds,
            multiple=self.multiple,
        )

    @property
    def _limits(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in LIMITS}

    @property
    def privacy(self) -> Privacy | None:
        """What the signature guarantees of the device's images; None for nothing."""
        return None if self.epsilon == 0 else Privacy(self.epsilon, self.delta)

    @property
    def fine_tuning(self) -> FineTuneSettings:
        """How the sub-network is tuned."""
        return FineTuneSettings(
            iterations=self.iterations,
            learning_rate=self.learning_rate,
            micro_batch=self.micro_batch,
            tuned=self.tune,
            precision=self.precision,
            max_seconds=self.adapt_seconds or None,
            max_memory=self.adapt_megabytes * MEGABYTE or None,
        )


@dataclass(frozen=True)
class NodeSettings:
    """What only a node itself can know: where its data is, and where it may keep something."""

    data_path: Path | None = None
    """The device's ImageFolder task."""
    partition_id: int | None = None
    """The device's number, from 0: Flower's simulation sets it."""
    state_dir: Path | None = None
    """Where the offer waits between two messages; without it in the SuperNode's memory."""
    network_path: Path | None = None
    """Where to write the adapted network (safetensors); without it only its mask lives on."""


def fleet_settings(run_config: Config) -> FleetSettings:
    """The server's settings in a run's configuration, whose other keys are the devices'.

    Raises InputError with every key that is unknown, every value of a wrong type or out of range.
    """
    return _read(FleetSettings, run_config, others=_keys(DeviceSettings))


def device_settings(
    run_config: Config, node_config: Config, given: DeviceSettings | None = None
) -> tuple[DeviceSettings, NodeSettings]:
    """A device's settings: its node's configuration wins over the run's, or over those `given`.

    Keys of the node's that are not ours are left alone, as its SuperNode may serve other apps too.
    Raises InputError with every key of the run's that is unknown, and every value that is no use.
    """
    settings = given or _read(DeviceSettings, run_config, others=_keys(FleetSettings))
    own = {key: value for key, value in node_config.items() if key in _keys(DeviceSettings)}
    placed = {key: value for key, value in node_config.items() if key in _keys(NodeSettings)}
    if {"keep-ratio", *map(_key, LIMITS)} & {*own}:
        # A node's own budget replaces the run's, of any kind.
        own = {_key(name): 0 for name in LIMITS} | own
    values, problems = _values(DeviceSettings, own)
    where, misplaced = _values(NodeSettings, placed)
    _refuse(problems + misplaced)
    return replace(settings, **values), NodeSettings(**where)


Settings = TypeVar("Settings", FleetSettings, DeviceSettings)


def _read(kind: type[Settings], config: Config, others: frozenset[str]) -> Settings:
    known = _keys(kind)
    values, problems = _values(kind, {key: value for key, value in config.items() if key in known})
    problems += [
        f"{key} is unknown; known are {', '.join(sorted(known | others))}"
        for key in config
        if key not in known | others
    ]
    try:
        settings = kind(**values)
    except InputError as error:
        problems.append(str(error))
    _refuse(problems)
    return settings


def _values(kind: type, config: Config) -> tuple[dict[str, Any], list[str]]:
    """Field name -> value of the right type, and a sentence for each value that has none."""
    hints, values, problems = get_type_hints(kind), {}, []
    for key, value in config.items():
        name = key.replace("-", "_")
        try:
            values[name] = READ[hints[name]](value)
        except ValueError as error:
            problems.append(f"{key} is {value!r}; it is {error}")
    return values, problems


def _whole(value: Value) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("a whole number")
    return value


def _number(value: Value) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("a number")
    return float(value)


def _text(value: Value) -> str:
    if not isinstance(value, str):
        raise ValueError("text in quotes")
    return value


def _path(value: Value) -> Path | None:
    return Path(text) if (text := _text(value)) else None


def _whole_numbers(value: Value) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in _text(value).split(",") if part.strip())
    except ValueError as error:
        raise ValueError('whole numbers in text, as "10,25,50"') from error


READ: Mapping[Any, Callable[[Value], Any]] = {
    int: _whole,
    int | None: _whole,
    float: _number,
    Method: _text,
    Tuned: _text,
    Precision: _text,
    Path: lambda value: Path(_text(value)),
    Path | None: _path,
    tuple[int, ...]: _whole_numbers,
}
"""Type of a field -> how a configuration's value becomes one."""


def _key(name: str) -> str:
    return name.replace("_", "-")


def _keys(kind: type) -> frozenset[str]:
    return frozenset(_key(field.name) for field in fields(kind))


def _broken(*rules: tuple[bool, str]) -> list[str]:
    return [sentence for holds, sentence in rules if not holds]


def _refuse(problems: list[str]) -> None:
    if problems:
        raise InputError(f"these settings cannot be used: {'; '.join(problems)}")
