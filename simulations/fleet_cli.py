"""maskvote-sim demo and fleet: devices that join a library one after the other, on one machine."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import click
import numpy as np
from safetensors.torch import save

from common.backbone import Backbone, backbone_weights, classes_of, read_weights
from common.budget import Budget, check_feasible
from common.command_line import remark, settings_option, show_json
from common.errors import InputError
from common.exchange import METHODS, Method
from common.files import write_whole
from common.fine_tune import FineTuneSettings
from common.image_folders import TYPES_IN_WORDS
from common.pruning import PruningSettings
from server.founding import found_library
from simulations.baselines import ALTERNATIVES
from simulations.demo import DemoSettings, demo_backbone, demo_weights, device_tasks, library_pool
from simulations.devices import lay_out
from simulations.fleet import (
    FleetRun,
    alternatives_in_processes,
    devices_through_flower,
    record_of,
    seed_in_processes,
    worker_processes,
)
from simulations.plot_cli import show_record
from simulations.plots import curves
from simulations.pools import check_two_sides
from simulations.stages import Watch, stages
from simulations.tasks import ClassPool, TaskChoice, draw_tasks, pool_folder, read_pool

RUNS = click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs"),
    show_default=True,
    help="Where runs go, each into a directory of its own.",
)
COUNT = click.IntRange(min=1)
JSON = click.option("--json", "as_json", is_flag=True, help="Print the record instead of a table.")


@click.command()
@RUNS
@settings_option("--keep-ratio", default=0.2, help="Share of the backbone's units a device affords.")
@settings_option("--method", type=click.Choice(METHODS), default="smsp")
@settings_option("--seed", default=0)
@JSON
def demo(out: Path, keep_ratio: float, method: Method, seed: int, as_json: bool) -> int:
    """The whole story in a few minutes, with nothing to download.

    Pre-trains a backbone on glyphs of many scripts, seeds a library of masks, and lets devices join
    that bring scripts the backbone never saw, and handwritten digits.
    """
    settings = DemoSettings(seed=seed)
    fleet = FleetRun(
        keep_ratio=keep_ratio,
        method=method,
        seed=seed,
        seeding=FineTuneSettings(iterations=60),
        seed_pruning=PruningSettings(rounds=5),
    )
    backbone = demo_backbone(settings)
    with stages(as_json) as watch:
        checkpoint = demo_weights(
            backbone, settings, out, lambda done, total: watch("pre-training the backbone", done, total)
        )
        pool = library_pool(backbone, settings)
        drawn = np.random.default_rng(seed)
        choices = draw_tasks(len(pool.names), settings.library_tasks, settings.ways, drawn, "library")
        directory = _new_directory(out, "demo")
        record = _run_fleet(
            "Unseen scripts and handwritten digits",
            directory,
            checkpoint,
            [(pool, choice) for choice in choices],
            device_tasks(backbone, settings),
            settings.train_images,
            fleet,
            {"demo": asdict(settings)},
            watch,
        )
    return _finish(record, directory, as_json)


@click.command()
@click.option("--backbone", "model", required=True, help="A timm model name, for example resnet18.")
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    help="Safetensors file of its weights; without it, those that timm publishes.",
)
@click.option("--num-classes", type=int, help="Default: those of the checkpoint, else the model's own.")
@click.option("--image-size", type=int, help="Pixels a side; default: the model's own.")
@click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path),
    help=f"A directory of images ({TYPES_IN_WORDS}) in train/CLASS/ and val/CLASS/; tasks are subsets of "
    "its classes.",
)
@RUNS
@settings_option("--library-tasks", type=COUNT, default=12)
@settings_option("--devices", type=COUNT, default=6)
@settings_option("--ways", type=click.IntRange(min=2), default=10, help="Classes of a task.")
@settings_option("--images", type=COUNT, default=200, help="Training images a class, at most.")
@settings_option("--keep-ratio", default=0.1, help="Share of the backbone's units a device affords.")
@settings_option("--method", type=click.Choice(METHODS), default="smsp")
@settings_option("--iterations", default=FineTuneSettings.iterations)
@settings_option("--seeding-iterations", default=150)
@settings_option("--neighbours", default=5)
@settings_option("--explore", default=0.1, help="Share of runners-up in an SMSP sub-network.")
@settings_option(
    "--alternatives",
    default="random,L1,scratch",
    help=f"What devices would get instead, of {', '.join(ALTERNATIVES)}.",
)
@settings_option("--workers", type=COUNT, default=2, help="Devices at a time, a processor each.")
@settings_option("--seed", default=0)
@JSON
def fleet(
    model: str,
    checkpoint: Path | None,
    num_classes: int | None,
    image_size: int | None,
    data: Path,
    out: Path,
    library_tasks: int,
    devices: int,
    ways: int,
    images: int,
    keep_ratio: float,
    method: Method,
    iterations: int,
    seeding_iterations: int,
    neighbours: int,
    explore: float,
    alternatives: str,
    workers: int,
    seed: int,
    as_json: bool,
) -> int:
    """A fleet on your own photographs: library and devices share classes, but no training image.

    Example: maskvote-sim fleet --backbone resnet18 --checkpoint resnet18.safetensors --image-size 64
    --data photographs
    """
    ways_instead = tuple(name for name in alternatives.split(",") if name)
    unknown = [name for name in ways_instead if name not in ALTERNATIVES]
    if unknown:
        raise InputError(
            f"unknown alternatives {', '.join(unknown)}; known are {', '.join(ALTERNATIVES)}"
        )
    settings = FleetRun(
        keep_ratio=keep_ratio,
        method=method,
        neighbours=neighbours,
        explore=explore,
        tuning=FineTuneSettings(iterations=iterations),
        seeding=FineTuneSettings(iterations=seeding_iterations),
        evaluate_at=tuple(k for k in (10, 25, 50, 100) if k < iterations),
        alternatives=ways_instead,
        workers=workers,
        seed=seed,
    )
    folder = pool_folder(data)
    check_two_sides(folder, data)
    drawn = np.random.default_rng(seed)
    seeds = draw_tasks(len(folder.train), library_tasks, ways, drawn, "library")
    new = draw_tasks(len(folder.train), devices, ways, drawn, "device")
    remark(folder.left_out.sentence(data))
    backbone = Backbone.from_timm(
        model, num_classes=classes_of(checkpoint, model, num_classes), image_size=image_size
    )
    weights = backbone_weights(backbone, checkpoint)
    directory = _new_directory(out, "fleet")
    if checkpoint is None:
        checkpoint = directory / "backbone.safetensors"
        write_whole(checkpoint, save(weights))
    with stages(as_json) as watch:
        pool = read_pool(data, backbone, lambda done, n: watch("reading photographs", done, n))
        record = _run_fleet(
            f"{backbone.model} on {data.name.encode(errors='backslashreplace').decode()}",
            directory,
            checkpoint,
            [(pool, choice) for choice in seeds],
            [(pool, choice) for choice in new],
            images,
            settings,
            {"tasks": {choice.name: [pool.names[k] for k in choice.classes] for choice in seeds + new}},
            watch,
        )
    return _finish(record, directory, as_json)


def _run_fleet(
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


def _new_directory(out: Path, kind: str) -> Path:
    directory = out / f"{kind}-{datetime.now():%Y%m%d-%H%M%S}"
    try:
        directory.mkdir(parents=True)
    except OSError as error:
        raise InputError(
            f"{directory} cannot be made ({error.strerror}); choose another place with --out"
        ) from error
    return directory


def _finish(record: Mapping[str, Any], directory: Path, as_json: bool) -> int:
    """Write and show what the fleet came to. Exit status 1 where a device failed, as of `experiment`."""
    write_whole(directory / "record.json", json.dumps(record, indent=1).encode())
    curves(record, directory / "curves.png")
    if as_json:
        show_json(record)
    else:
        show_record(record)
        click.echo(f"\n{directory}: record.json, curves.png, report.json, library.db")
    failed = [device for device in record["devices"] if device["error"] is not None]
    for device in failed:
        click.echo(f"{device['name']} failed: {device['error']}", err=True)
    return 1 if failed else 0
