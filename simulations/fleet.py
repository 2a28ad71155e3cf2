"""A fleet on one machine: a library is founded and seeded, devices join, each is held against others.

Everything that a task needs lies in a directory of its own, and every step is the real one: seeding
is the operator's, devices run the client's code, in this process or as Flower's ClientApps.
"""

from __future__ import annotations

import multiprocessing
import platform
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

from client.adapt import adapt_assignment, describe
from common.adaptation import Adapted
from common.backbone import Backbone, Weights, read_weights
from common.exchange import Assignment, Budget, Method, Neighbour
from common.fine_tune import FineTuneSettings
from common.proto_codec import encode_assignment, encode_contribution, encode_task_description
from common.pruning import PruningSettings
from common.task_data import load_folder
from server.budget import allot
from server.coordinator import Coordinator, VotingSettings
from server.founding import seed_library
from server.library import Library
from simulations.baselines import ALTERNATIVES, Contest


@dataclass(frozen=True)
class FleetRun:
    """What is done with a fleet: how the library is seeded, what devices ask, what they are held to."""

    keep_ratio: float = 0.1
    method: Method = "smsp"
    headroom: float = 1.5
    voting: VotingSettings = field(default_factory=VotingSettings)
    tuning: FineTuneSettings = field(default_factory=FineTuneSettings)
    seeding: FineTuneSettings = field(default_factory=lambda: FineTuneSettings(iterations=150))
    seed_pruning: PruningSettings = field(default_factory=lambda: PruningSettings(rounds=8))
    evaluate_at: tuple[int, ...] = (0, 10, 25, 50)
    alternatives: tuple[str, ...] = ("random", "L1", "scratch")
    workers: int = 2
    seed: int = 0

    @property
    def budget(self) -> Budget:
        """What every device of the fleet can afford."""
        return Budget(keep_ratio=self.keep_ratio, headroom=self.headroom if self.method == "mvp" else 1.0)


@dataclass(frozen=True)
class DeviceRecord:
    """How one device fared; `error` says why it did not, and the rest is then empty.

    `accuracies` are on the device's evaluation images: way -> iterations -> share in [0, 1]. Bytes
    up are the request and the contribution, down the answer and its sub-network; the probe is
    fetched once and told apart.
    """

    name: str
    classes: int
    error: str | None = None
    origin: str = ""
    neighbours: tuple[Neighbour, ...] = ()
    units: int = 0
    of_units: int = 0
    parameters: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    probe_bytes: int = 0
    seconds: float = 0.0
    accuracies: dict[str, dict[int, float]] = field(default_factory=dict)


Watch = Callable[[str, int, int], None]
"""Called with a stage's name, what is done of it, and what there is to do."""


@cache
def _weights(checkpoint: Path, backbone: str) -> Weights:
    return read_weights(checkpoint, Backbone.from_json(backbone))


@contextmanager
def worker_processes(count: int) -> Iterator[ProcessPoolExecutor]:
    """Processes of one thread each: two threads in each of two would starve each other."""
    with ProcessPoolExecutor(
        count,
        multiprocessing.get_context("spawn"),
        initializer=torch.set_num_threads,
        initargs=(1,),
    ) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _watched(futures: Sequence[Future], stage: str, watch: Watch) -> Iterator[Future]:
    watch(stage, 0, len(futures))
    for done, future in enumerate(as_completed(futures), start=1):
        watch(stage, done, len(futures))
        yield future


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


def devices_in_process(
    library: Path, checkpoint: Path, folders: Sequence[Path], run: FleetRun, watch: Watch
) -> list[DeviceRecord]:
    """Devices one after the other, in this process: each finds the masks of those before it."""
    records = []
    with Library.open(library) as opened:
        backbone = opened.offer.backbone
        coordinator = Coordinator(opened, _weights(checkpoint, backbone.to_json()), run.voting)
        watch("devices adapt", 0, len(folders))
        for done, folder in enumerate(folders, start=1):
            try:
                records.append(_one_device(coordinator, folder, run))
            except Exception as error:
                records.append(DeviceRecord(folder.name, 0, error=str(error)))
            watch("devices adapt", done, len(folders))
    return records


def _one_device(coordinator: Coordinator, folder: Path, run: FleetRun) -> DeviceRecord:
    began = time.perf_counter()
    offer = coordinator.offer()
    task = load_folder(folder, offer.backbone)
    request = describe(offer, task, run.budget, run.method, secrets.token_hex(16))
    assignment = coordinator.assign(request)
    adapted, contribution = adapt_assignment(
        assignment, task, run.tuning, _generator(run, folder), evaluate_at=run.evaluate_at
    )
    coordinator.record(contribution)
    return record_of(
        folder.name,
        assignment,
        adapted,
        run,
        bytes_up=len(encode_task_description(request)) + len(encode_contribution(contribution)),
        bytes_down=sum(map(len, encode_assignment(assignment))),
        probe_bytes=len(offer.probe.to_bytes()),
        seconds=time.perf_counter() - began - adapted.seconds["evaluate"],
    )


def record_of(
    name: str,
    assignment: Assignment,
    adapted: Adapted,
    run: FleetRun,
    *,
    bytes_up: int,
    bytes_down: int,
    probe_bytes: int,
    seconds: float,
) -> DeviceRecord:
    """What is kept of a device that adapted."""
    return DeviceRecord(
        name=name,
        classes=adapted.network.get_submodule(assignment.subnetwork.backbone.classifier).out_features,
        origin=assignment.origin,
        neighbours=assignment.neighbours,
        units=int(adapted.pruned.mask.kept.sum()),
        of_units=adapted.pruned.mask.structure.units,
        parameters=sum(p.numel() for p in adapted.network.parameters()),
        bytes_up=bytes_up,
        bytes_down=bytes_down,
        probe_bytes=probe_bytes,
        seconds=round(seconds, 2),
        accuracies={way_of(run): adapted.accuracies},
    )


def way_of(run: FleetRun) -> str:
    """What the fleet's own way is called in tables and plots."""
    return f"{run.method.upper()} vote"


def _generator(run: FleetRun, folder: Path) -> torch.Generator:
    return torch.Generator().manual_seed(run.seed + int.from_bytes(folder.name.encode()[-6:], "big"))


def alternatives_in_processes(
    library: Path,
    checkpoint: Path,
    folders: dict[str, Path],
    records: Sequence[DeviceRecord],
    run: FleetRun,
    pool: ProcessPoolExecutor,
    watch: Watch,
) -> list[DeviceRecord]:
    """The records, with what each device would have got instead, at its size and iterations."""
    futures = {
        pool.submit(_one_alternative, library, checkpoint, folders[record.name], way, run): (
            record.name,
            way,
        )
        for record in records
        if record.error is None
        for way in run.alternatives
    }
    found: dict[str, dict[str, dict[int, float]]] = {record.name: {} for record in records}
    for future in _watched(list(futures), "what devices would get instead", watch):
        name, way = futures[future]
        found[name][way] = future.result()
    return [
        DeviceRecord(
            **{
                **vars(record),
                "accuracies": record.accuracies
                | {way: found[record.name][way] for way in run.alternatives if way in found[record.name]},
            }
        )
        for record in records
    ]


def _one_alternative(
    library: Path, checkpoint: Path, folder: Path, way: str, run: FleetRun
) -> dict[int, float]:
    with Library.open(library) as opened:
        offer = opened.offer
    task = load_folder(folder, offer.backbone)
    contest = Contest(
        offer.backbone,
        _weights(checkpoint, offer.backbone.to_json()),
        offer.structure,
        task,
        allot(offer.structure, Budget(keep_ratio=run.keep_ratio), len(task.classes)),
        run.tuning,
        _generator(run, folder).initial_seed() % 2**31,
        run.evaluate_at,
    )
    return ALTERNATIVES[way](contest).accuracies


def record_run(
    title: str, run: FleetRun, devices: Sequence[DeviceRecord], extra: dict[str, Any]
) -> dict[str, Any]:
    """A run as JSON: settings, versions and raw numbers; metrics and pictures come from it later."""
    return {
        "title": title,
        "run": asdict(run),
        **extra,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "timm": timm.__version__,
            "numpy": np.__version__,
        },
        "devices": [asdict(device) for device in devices],
    }
