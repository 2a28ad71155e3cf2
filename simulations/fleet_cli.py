"""maskvote-sim demo and fleet: devices that join a library one after the other, on one machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import click
import numpy as np

from common.budget import Budget
from common.command_line import remark, settings_option, show_json
from common.errors import InputError
from common.exchange import METHODS, Method
from common.files import write_whole
from common.image_folders import TYPES_IN_WORDS
from common.option_types import INPUT_DIRECTORY, INPUT_FILE, SHARE
from common.tuning_settings import FineTuneSettings, PruningSettings
from server.settings import VotingSettings
from simulations.alternatives import ALTERNATIVES
from simulations.plot_cli import show_record
from simulations.stages import stages

COUNT = click.IntRange(min=1)
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
@settings_option(
    "--keep-ratio", type=SHARE, default=0.2, help="Share of the backbone's units a device affords."
)
@settings_option("--method", type=click.Choice(METHODS), default="smsp")
@settings_option("--seed", default=0)
@JSON
def demo(out: Path, keep_ratio: float, method: Method, seed: int, as_json: bool) -> int:
    """The whole story in a few minutes, with nothing to download.

    Pre-trains a backbone on glyphs of many scripts, seeds a library of masks, and lets devices join
    that bring scripts the backbone never saw, and handwritten digits.
    """
    Budget(keep_ratio=keep_ratio)

    from simulations.demo import DemoSettings, demo_backbone, demo_weights, device_tasks, library_pool
    from simulations.fleet import FleetRun, run_fleet
    from simulations.tasks import draw_tasks

    settings = DemoSettings(seed=seed)
    fleet = FleetRun(
        keep_ratio=keep_ratio,
        method=method,
        seed=seed,
        seeding=FineTuneSettings(iterations=60),
        seed_pruning=PruningSettings(rounds=5),
    )
    backbone = demo_backbone(settings)
    with stages() as watch:
        watch("drawing glyphs", 0, None)
        checkpoint = demo_weights(
            backbone, settings, out, lambda done, total: watch("pre-training the backbone", done, total)
        )
        watch("drawing glyphs of the devices", 0, None)
        pool = library_pool(backbone, settings)
        drawn = np.random.default_rng(seed)
        choices = draw_tasks(len(pool.names), settings.library_tasks, settings.ways, drawn, "library")
        directory = _new_directory(out, "demo")
        record = run_fleet(
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
    type=INPUT_FILE,
    help="Safetensors file of its weights; without it, those that timm publishes.",
)
@click.option("--num-classes", type=COUNT, help="Default: those of the checkpoint, else the model's own.")
@click.option("--image-size", type=COUNT, help="Pixels a side; default: the model's own.")
@click.option(
    "--data",
    required=True,
    type=INPUT_DIRECTORY,
    help=f"A directory of images ({TYPES_IN_WORDS}) in train/CLASS/ and val/CLASS/; tasks are subsets of "
    "its classes.",
)
@RUNS
@settings_option("--library-tasks", type=COUNT, default=12)
@settings_option("--devices", type=COUNT, default=6)
@settings_option("--ways", type=click.IntRange(min=2), default=10, help="Classes of a task.")
@settings_option("--images", type=COUNT, default=200, help="Training images a class, at most.")
@settings_option(
    "--keep-ratio", type=SHARE, default=0.1, help="Share of the backbone's units a device affords."
)
@settings_option("--method", type=click.Choice(METHODS), default="smsp")
@settings_option("--iterations", default=FineTuneSettings.iterations)
@settings_option("--seeding-iterations", default=150)
@settings_option("--neighbours", default=5)
@settings_option("--explore", type=SHARE, default=0.1, help="Share of runners-up in an SMSP sub-network.")
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
    Budget(keep_ratio=keep_ratio)
    VotingSettings(neighbours=neighbours, explore=explore)
    tuning = FineTuneSettings(iterations=iterations)
    seeding = FineTuneSettings(iterations=seeding_iterations)

    from safetensors.torch import save

    from common.backbone import Backbone, backbone_weights, classes_of
    from simulations.fleet import FleetRun, run_fleet
    from simulations.pools import check_two_sides
    from simulations.tasks import draw_tasks, pool_folder, read_pool

    settings = FleetRun(
        keep_ratio=keep_ratio,
        method=method,
        neighbours=neighbours,
        explore=explore,
        tuning=tuning,
        seeding=seeding,
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
    with stages() as watch:
        pool = read_pool(data, backbone, lambda done, n: watch("reading photographs", done, n))
        record = run_fleet(
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
    from simulations.plots import curves

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
