"""Accuracy of voted sub-networks against what a device would get instead, on photographs.

    python -m benchmarks.accuracy --checkpoint FILE --data DIR --out benchmarks/results/accuracy

Founds and seeds a library by iterative pruning on its own tasks, then adapts new tasks in every
way; library and new tasks share classes but no training image. Appends one JSON record a cell to
OUT/cells.jsonl and goes on where an earlier run stopped. `python -m benchmarks.accuracy_table OUT`
prints the table.
"""

from __future__ import annotations

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from pathlib import Path

import click
import numpy as np
import torch
from rich.progress import track

from common.backbone import Backbone, Weights, read_weights
from common.fine_tune import FineTuneSettings
from common.pruning import PruningSettings
from server.founding import found_library, seed_library
from server.library import Library
from simulations.comparison import Comparison, ComparisonSettings, append, pending
from simulations.tasks import ClassPool, TaskChoice, draw_tasks, read_pool

SETTINGS = ComparisonSettings()
TUNING = FineTuneSettings()
SEEDING = FineTuneSettings(iterations=150)
SEED_PRUNING = PruningSettings(rounds=8)


@cache
def backbone_of(model: str, classes: int, size: int, checkpoint: str) -> tuple[Backbone, Weights]:
    backbone = Backbone.from_timm(model, num_classes=classes, image_size=size)
    return backbone, read_weights(Path(checkpoint), backbone)


@cache
def pool_of(data: str, *backbone: object) -> ClassPool:
    return read_pool(Path(data), backbone_of(*backbone)[0])


@cache
def comparison_of(library: str, *backbone: object) -> Comparison:
    return Comparison(Library.open(library), backbone_of(*backbone)[1], SETTINGS, TUNING)


def seed_one(library: str, data: str, backbone: tuple, choice: TaskChoice) -> str:
    torch.set_num_threads(1)
    pool = pool_of(data, *backbone)
    with Library.open(library) as opened:
        seed_library(
            opened,
            backbone_of(*backbone)[1],
            [(choice.name, lambda: pool.task(choice, owners=2, owner=0))],
            keep_ratio=SETTINGS.keep_ratio,
            settings=SEEDING,
            pruning=SEED_PRUNING,
        )
    return choice.name


def run_cell(library: str, data: str, backbone: tuple, cell: tuple[int, TaskChoice, str]) -> dict:
    torch.set_num_threads(1)
    comparison = comparison_of(library, *backbone)
    seed, choice, way = cell
    contest = comparison.contest(pool_of(data, *backbone), choice, seed)
    return vars(comparison.run(contest, way, choice.name, seed))


@click.command()
@click.option("--model", default="resnet18", show_default=True)
@click.option("--classes", default=100, show_default=True, help="Classes of the checkpoint.")
@click.option("--image-size", default=64, show_default=True)
@click.option("--checkpoint", required=True, type=click.Path(exists=True, dir_okay=False))
@click.option("--data", required=True, type=click.Path(exists=True, file_okay=False))
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--library-tasks", default=20, show_default=True)
@click.option("--new-tasks", default=6, show_default=True, help="For each seed.")
@click.option("--ways", default=10, show_default=True, help="Classes of a task.")
@click.option("--seeds", default=3, show_default=True)
@click.option("--workers", default=2, show_default=True)
def main(
    model, classes, image_size, checkpoint, data, out, library_tasks, new_tasks, ways, seeds, workers
):
    """Run what is missing of the comparison."""
    out.mkdir(parents=True, exist_ok=True)
    arguments = (model, classes, image_size, checkpoint)
    backbone, weights = backbone_of(*arguments)
    pool = pool_of(data, *arguments)
    library_path = out / "library.db"
    drawn = np.random.default_rng(0)
    library_choices = draw_tasks(len(pool.names), library_tasks, ways, drawn, "library")
    if not library_path.exists():
        images = pool.task(TaskChoice("all", tuple(range(len(pool.names)))), owners=2, images=20).train
        found_library(library_path, backbone, weights, images).close()
    (out / "settings.json").write_text(
        json.dumps(
            {
                "comparison": vars(SETTINGS), "tuning": vars(TUNING), "seeding": vars(SEEDING),
                "seed_pruning": vars(SEED_PRUNING), "model": model, "library_tasks": library_tasks,
                "new_tasks": new_tasks, "ways": ways, "seeds": seeds, "torch": torch.__version__,
            },
            indent=1,
        )
    )  # fmt: skip
    path = str(library_path)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as workers_pool:
        seeding = [
            workers_pool.submit(seed_one, path, data, arguments, choice) for choice in library_choices
        ]
        for done in track(as_completed(seeding), "Seeding the library", len(seeding)):
            done.result()
        with Library.open(library_path) as library:
            comparison = Comparison(library, weights, SETTINGS, TUNING)
        cells = []
        for seed in range(seeds):
            fresh = np.random.default_rng(1000 + seed)
            for choice in draw_tasks(len(pool.names), new_tasks, ways, fresh, f"new{seed}-"):
                cells += [(seed, choice, way) for way in comparison.ways()]
        records = out / "cells.jsonl"
        running = {
            workers_pool.submit(run_cell, path, data, arguments, cell): cell
            for cell in pending(records, cells)
        }
        failed = 0
        for done in track(as_completed(running), "Adapting new tasks", len(running)):
            try:
                append(records, done.result())
            except Exception as error:
                failed += 1
                click.echo(f"{running[done]} failed: {error!r}", err=True)
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
