"""The settings of a run: what all its cells have in common. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.tuning_settings import FineTuneSettings, PruningSettings
from server.settings import HealingSettings, KeepRatios


@dataclass(frozen=True)
class RunSettings:
    """What all cells of a run have in common."""

    model: str
    data: str
    """Where tasks come from: a directory, `torchvision:NAME:DIRECTORY`, or `glyphs`."""
    public: str
    """Where public images come from: a directory in any layout, or as for `data`; "" is nowhere, and then
    nothing can be healed."""
    checkpoint: str = ""
    """Safetensors file; "" is what timm publishes."""
    num_classes: int | None = None
    image_size: int | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    library_tasks: int = 60
    tasks_a_seed: int = 4
    seeds: int = 3
    images: int = 100
    """Training images a class, of library tasks and of devices."""
    keep_ratio: float = 0.1
    """Of the library's masks."""
    seeding: FineTuneSettings = field(
        default_factory=lambda: FineTuneSettings(iterations=60, fit_images=512)
    )
    seed_pruning: PruningSettings = field(default_factory=lambda: PruningSettings(rounds=5))
    healing: HealingSettings = field(default_factory=HealingSettings)
    heal_ratios: KeepRatios = field(default_factory=KeepRatios)
    device: str = "cpu"
    small_model: str = ""
    """A small network off the shelf to hold the others against; "" is none."""
    small_checkpoint: str = ""
    """Its safetensors file; "" is what timm publishes."""


SMALL = frozenset({"small_model", "small_checkpoint"})
"""Settings that a run may still be given after it began."""


def check_is_run(path: Path) -> None:
    """Raise InputError unless there is a run in a directory."""
    if not (path / "run.json").exists():
        raise InputError(f"{path} is no run: it has no run.json; give --backbone and --data to begin one")
