"""maskvote-server create and seed: a new library, and the first masks in it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import click

from common.budget import Budget
from common.command_line import remark, settings_option
from common.errors import TaskDataError
from common.files import check_writable
from common.image_folders import TYPES_IN_WORDS, LeftOut, subfolders
from common.option_types import SHARE
from common.progress import progress
from common.structure import Kind
from common.task_data import load_folder, task_files
from common.task_folder import read_task_folder
from common.threads_option import THREADS, compute_with
from common.tuning_settings import FineTuneSettings, PruningSettings
from server.entry_tables import show_entries
from server.library import Library
from server.library_file import check_is_free
from server.model_options import CHECKPOINT, model_options, proof_progress
from server.operate_cli import JSON
from server.settings import PROBE_KEEP_RATIO

LIBRARY = click.argument("library", type=click.Path(path_type=Path))


@click.command()
@LIBRARY
@click.option("--model", required=True, help="A timm model name, for example resnet18.")
@model_options
@CHECKPOINT
@click.option(
    "--images",
    required=True,
    type=click.Path(path_type=Path),
    help=f"A task of yours, images ({TYPES_IN_WORDS}) in train/CLASS/: they set the probe's statistics.",
)
@click.option("--residual", is_flag=True, help="Let masks cut the residual stream too.")
@settings_option(
    "--probe-keep-ratio", type=SHARE, default=PROBE_KEEP_RATIO, help="The probe's share of units."
)
@settings_option("--seed", default=0)
@THREADS
def create(
    library: Path,
    model: str,
    num_classes: int | None,
    image_size: int | None,
    arguments: Mapping[str, object],
    checkpoint: Path | None,
    images: Path,
    residual: bool,
    probe_keep_ratio: float,
    seed: int,
    threads: int,
) -> None:
    """Found a new, empty LIBRARY for a backbone.

    Example: maskvote-server create birds.db --model resnet18 --images tasks/birds
    """
    check_is_free(library)
    check_writable(library)
    Budget(keep_ratio=probe_keep_ratio)
    task_files(images)

    from common.backbone import Backbone, backbone_weights, classes_of
    from server.founding import found_library

    compute_with(threads)
    classes = classes_of(checkpoint, model, num_classes)
    backbone = Backbone.from_timm(model, num_classes=classes, image_size=image_size, arguments=arguments)
    kinds: tuple[Kind, ...] = ("internal", "residual") if residual else ("internal",)
    weights, task = backbone_weights(backbone, checkpoint), load_folder(images, backbone)
    remark(task.left_out)
    with proof_progress("Founding the library") as watch:
        founded = found_library(
            library,
            backbone,
            weights,
            task.train,
            kinds=kinds,
            probe_keep_ratio=probe_keep_ratio,
            seed=seed,
            watch=watch,
        )
    with founded:
        offer = founded.offer
        structure, probe = offer.structure, offer.probe.subnetwork
        click.echo(
            f"{library}: {backbone.model}, {structure.units:,} units, {len(structure.groups)} groups; "
            f"probe of {probe.parameters:,} parameters"
        )


@click.command()
@LIBRARY
@click.option(
    "--tasks",
    required=True,
    type=click.Path(path_type=Path),
    help=f"A directory of tasks, each with images ({TYPES_IN_WORDS}) in train/CLASS/ and, optionally, "
    "val/CLASS/.",
)
@CHECKPOINT
@settings_option("--keep-ratio", type=SHARE, default=0.1, help="Share of units that the masks keep.")
@settings_option("--iterations", default=150, help="Fine-tuning iterations a task.")
@settings_option("--rounds", default=8, help="Rounds of pruning a task.")
@settings_option("--seed", default=0)
@THREADS
@JSON
def seed(
    library: Path,
    tasks: Path,
    checkpoint: Path | None,
    keep_ratio: float,
    iterations: int,
    rounds: int,
    seed: int,
    threads: int,
    as_json: bool,
) -> None:
    """Fill LIBRARY with masks of your own tasks, by iterative pruning. Resumes where it stopped.

    Example: maskvote-server seed birds.db --tasks tasks/
    """
    left_out = LeftOut()
    folders = subfolders(tasks, left_out) if tasks.is_dir() else []
    if not folders:
        raise TaskDataError(f"{tasks} has no task directories; put an ImageFolder task into each")
    Budget(keep_ratio=keep_ratio)
    settings, pruning = FineTuneSettings(iterations=iterations), PruningSettings(rounds=rounds)
    for folder in folders:
        task_files(folder)
        left_out.add(read_task_folder(folder).left_out)
    remark(left_out.sentence(tasks))
    with Library.open(library) as opened, progress() as bars:
        from common.backbone import backbone_weights
        from server.founding import seed_library

        compute_with(threads)
        backbone = opened.offer.backbone
        total = bars.add_task("Seeding", total=len(folders))
        bar = bars.add_task("", total=iterations)
        done: set[str] = set()

        def watch(name: str, iteration: int, iterations: int) -> None:
            bars.update(bar, description=name, completed=iteration, total=iterations)
            done.add(name)
            bars.update(total, completed=len(done) - 1)

        entries = seed_library(
            opened,
            backbone_weights(backbone, checkpoint),
            [(path.name, partial(load_folder, path, backbone)) for path in folders],
            keep_ratio=keep_ratio,
            settings=settings,
            pruning=pruning,
            seed=seed,
            progress=watch,
        )
        bars.update(total, completed=len(folders))
        facts = [opened.facts_of(entry.entry) for entry in entries]
    show_entries(f"{library}: seeds", facts, opened.structure, as_json)
