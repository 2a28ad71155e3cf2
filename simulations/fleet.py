"""A fleet on one machine: a library is seeded, devices join through Flower, each is held to others.

Every task lies in a directory of its own, and every step is the real one: seeding is the operator's,
devices run the same ServerApp and ClientApp as a deployment, here as processes of Flower's engine.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import flwr
import numpy as np
import timm
import torch

from common.backbone import Backbone, Weights, read_weights
from common.budget import Budget, check_feasible
from common.exchange import Method
from common.settings import DeviceSettings, FleetSettings
from common.task_data import load_folder
from common.tuning_settings import FineTuneSettings, PruningSettings
from common.user_directories import home_directory
from server.budget import allot
from server.founding import found_library, seed_library
from server.library import Library
from simulations.baselines import alternative
from simulations.contest import Contest
from simulations.devices import lay_out
from simulations.flower_engine import run_flower
from simulations.stages import Watch
from simulations.tasks import ClassPool, TaskChoice
from simulations.worker_processes import worker_processes


@dataclass(frozen=True)
class FleetRun:
    """What is done with a fleet: how the library is seeded, what devices ask, what they are held to."""

    keep_ratio: float = 0.1
    method: Method = "smsp"
    headroom: float = 1.5
    neighbours: int = 10
    explore: float = 0.1
    tuning: FineTuneSettings = field(default_factory=FineTuneSettings)
    seeding: FineTuneSettings = field(default_factory=lambda: FineTuneSettings(iterations=150))
    seed_pruning: PruningSettings = field(default_factory=lambda: PruningSettings(rounds=8))
    evaluate_at: tuple[int, ...] = (10, 25)
    alternatives: tuple[str, ...] = ("random", "L1", "scratch")
    workers: int = 2
    seed: int = 0

    @property
    def way(self) -> str:
        """What the fleet's own way is called in tables and plots."""
        return f"{self.method.upper()} vote"


def seed_in_processes(
    library: Path,
    checkpoint: Path,
    folders: Iterable[Path],
    run: FleetRun,
    pool: ProcessPoolExecutor,
    watch: Watch,
) -> None:
    """Seed a library on the tasks in these directories, several at a time."""
    futures = [pool.submit(_seed_one, library, checkpoint, folder, run) for folder in folders]
    for future in _watched(futures, "seeding the library", watch):
        future.result()


def _seed_one(library: Path, checkpoint: Path, folder: Path, run: FleetRun) -> None:
    with Library.open(library) as opened:
        backbone = opened.offer.backbone
        seed_library(
            opened,
            _weights(checkpoint, backbone.to_json()),
            [(folder.name, lambda: load_folder(folder, backbone))],
            keep_ratio=run.keep_ratio,
            settings=run.seeding,
            pruning=run.seed_pruning,
            seed=run.seed,
        )


def devices_through_flower(
    library: Path, checkpoint: Path, folders: Sequence[Path], run: FleetRun, report: Path, watch: Watch
) -> list[dict[str, Any]]:
    """Every device in its own node of Flower's engine; what became of each, in the folders' order.

    As many are in flight as there are workers: those that come later find the masks of earlier ones.
    """
    if home_directory() is None:
        # Flower's modules look for its directory in the user's home when they are imported.
        os.environ.setdefault("FLWR_HOME", str(report.absolute().parent / ".flwr"))
    ended: set[int] = set()
    watch("devices adapt", 0, len(folders))

    def hear(node: int) -> None:
        ended.add(node)
        watch("devices adapt", len(ended), len(folders))

    fleet = FleetSettings(
        library=library.absolute(),
        checkpoint=checkpoint.absolute(),
        neighbours=run.neighbours,
        explore=run.explore,
        devices=len(folders),
        at_once=run.workers,
        poll_seconds=0.05,
        report=report.absolute(),
    )
    device = DeviceSettings(
        data=folders[0].parent.absolute(),
        keep_ratio=run.keep_ratio,
        headroom=run.headroom if run.method == "mvp" else 1.0,
        method=run.method,
        iterations=run.tuning.iterations,
        learning_rate=run.tuning.learning_rate,
        evaluate_at=run.evaluate_at,
        seed=run.seed,
        threads=1,
    )
    run_flower(fleet, device, len(folders), run.workers, hear)
    outcomes = json.loads(report.read_text())["devices"]
    return [_named(outcomes, number, folder.name) for number, folder in enumerate(folders)]


def _named(outcomes: list[dict[str, Any]], number: int, name: str) -> dict[str, Any]:
    """The outcome of one partition; a device that failed before it named itself says what it can."""
    for outcome in outcomes:
        if outcome["partition"] == number:
            return {"name": name, **outcome}
    failed = [outcome["error"] for outcome in outcomes if outcome["partition"] is None]
    return {"name": name, "error": failed.pop() if failed else "it never answered", "accuracies": {}}


def alternatives_in_processes(
    library: Path,
    checkpoint: Path,
    folders: Sequence[Path],
    outcomes: Sequence[Mapping[str, Any]],
    run: FleetRun,
    pool: ProcessPoolExecutor,
    watch: Watch,
) -> list[dict[str, Any]]:
    """The outcomes with accuracies by way: the device's own, and what it would have got instead.

    All at the same number of units and iterations, on the same images.
    """
    futures = {
        pool.submit(_one_alternative, library, checkpoint, folder, way, run): (number, way)
        for number, folder in enumerate(folders)
        if outcomes[number]["error"] is None
        for way in run.alternatives
    }
    found: list[dict[str, Any]] = [{} for _ in outcomes]
    for future in _watched(list(futures), "what devices would get instead", watch):
        number, way = futures[future]
        found[number][way] = {str(k): v for k, v in sorted(future.result().items())}
    return [
        {
            **outcome,
            "accuracies": {run.way: outcome["accuracies"]}
            | {way: found[number][way] for way in run.alternatives if way in found[number]},
        }
        for number, outcome in enumerate(outcomes)
    ]


def _one_alternative(
    library: Path, checkpoint: Path, folder: Path, way: str, run: FleetRun
) -> dict[int, float]:
    with Library.open(library) as opened:
        offer = opened.offer
    task = load_folder(folder, offer.backbone)
    counts = allot(offer.structure, Budget(keep_ratio=run.keep_ratio), len(task.classes))
    contest = Contest(
        offer.backbone,
        _weights(checkpoint, offer.backbone.to_json()),
        offer.structure,
        task,
        counts,
        run.tuning,
        run.seed,
        run.evaluate_at,
    )
    return alternative(way, contest).accuracies


@cache
def _weights(checkpoint: Path, backbone: str) -> Weights:
    return read_weights(checkpoint, Backbone.from_json(backbone))


def _watched(futures: Sequence[Future], stage: str, watch: Watch) -> Iterator[Future]:
    watch(stage, 0, len(futures))
    for done, future in enumerate(as_completed(futures), start=1):
        watch(stage, done, len(futures))
        yield future


def record_of(
    title: str,
    run: FleetRun,
    library: Path,
    devices: Sequence[Mapping[str, Any]],
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    """A run as JSON: settings, versions and raw numbers; metrics and pictures come from it later."""
    with Library.open(library) as opened:
        structure, entries = opened.offer.structure, len(opened)
    return {
        "title": title,
        "run": asdict(run),
        **extra,
        "backbone": structure.model,
        "units": structure.units,
        "backbone_parameters": structure.parameters(),
        "library_entries": entries,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "timm": timm.__version__,
            "flwr": flwr.__version__,
            "numpy": np.__version__,
        },
        "devices": list(devices),
    }


def run_fleet(
    title: str,
    directory: Path,
    checkpoint: Path,
    seeds: list[tuple[ClassPool, TaskChoice]],
    devices: list[tuple[ClassPool, TaskChoice]],
    images: int,
    settings: FleetRun,
    extra: Mapping[str, Any],
    watch: Watch,
) -> dict[str, Any]:
    """Found a library, seed it, let the devices join, hold them to others; the record of it all."""
    began = time.perf_counter()
    library = directory / "library.db"
    pool, backbone = seeds[0][0], seeds[0][0].backbone
    with found_library(
        library,
        backbone,
        read_weights(checkpoint, backbone),
        pool.task(pool.all_classes, owners=2, images=max(1, 2000 // len(pool.names))).train,
        seed=settings.seed,
    ) as founded:
        ways = max(len(choice.classes) for _, choice in (*seeds, *devices))
        check_feasible(founded.offer.structure, Budget(keep_ratio=settings.keep_ratio), ways)
    total = len(seeds) + len(devices)
    folders: dict[str, list[Path]] = {"library": [], "devices": []}
    for kind, tasks, owner in (("library", seeds, 0), ("devices", devices, 1)):
        for number, (pool, choice) in enumerate(tasks):
            path = directory / kind / f"{number:02d}-{choice.name}"
            # One pool for both means one set of photographs: each side gets its own half.
            shared = seeds[0][0] is devices[0][0]
            folders[kind].append(
                lay_out(path, pool, choice, owners=1 + shared, owner=owner * shared, images=images)
            )
            watch("laying out the tasks", len(folders["library"]) + len(folders["devices"]), total)
    with worker_processes(settings.workers) as workers:
        seed_in_processes(library, checkpoint, folders["library"], settings, workers, watch)
    outcomes = devices_through_flower(
        library, checkpoint, folders["devices"], settings, directory / "report.json", watch
    )
    with worker_processes(settings.workers) as workers:
        outcomes = alternatives_in_processes(
            library, checkpoint, folders["devices"], outcomes, settings, workers, watch
        )
    took = {"seconds": round(time.perf_counter() - began, 1)}
    return record_of(title, settings, library, outcomes, {**extra, **took})
