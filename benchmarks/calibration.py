"""Whether probabilities can be believed, and whether tuning is kept only where it helps.

    python -m benchmarks.calibration --backbone resnet18 --checkpoint resnet18.safetensors \\
        --image-size 64 --data photographs --json benchmarks/results/calibration/resnet18.json

Tasks of ten classes are drawn from a directory of train/CLASS/* and val/CLASS/*. For each task and each
number of training images a class, the units that the backbone's own importance keeps are adapted, once
without any iteration and once with `--iterations`. The evaluation images give the accuracy, the mean
confidence and the expected calibration error, and the error that is left if the same images choose the
temperature: no method that sees only training images can be expected to do better.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import click
import numpy as np
import torch
from torch import nn

from common.adaptation import adapt_network
from common.backbone import Backbone, classes_of, read_weights
from common.budget import Budget
from common.calibration import calibration_of, softmax
from common.files import write_whole
from common.fine_tune import FineTuneSettings
from common.fitting import BATCH, on_device_of
from common.importance import magnitude
from common.mask import Mask
from common.rebuild import rebuild
from common.subnetwork import cut
from common.tables import show
from common.task_data import Task
from server.budget import allot
from simulations.tasks import draw_tasks, read_pool

TEMPERATURES = np.logspace(-2, 2, 161)


def logits_of(network: nn.Module, task: Task) -> np.ndarray:
    """Logits (N, K) of a task's evaluation images."""
    network.eval()
    with torch.inference_mode():
        parts = [
            network(on_device_of(network, task.evaluation.batch(indices)))
            for indices in torch.arange(len(task.evaluation)).split(BATCH)
        ]
    return torch.cat(parts).double().numpy()


def judged(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy and calibration of logits, and the calibration error at the best temperature for them."""
    own = calibration_of(logits, labels)
    losses = [
        -np.log(softmax(logits / t)[np.arange(len(labels)), labels].clip(1e-12)).mean()
        for t in TEMPERATURES
    ]
    best = calibration_of(logits / TEMPERATURES[int(np.argmin(losses))], labels)
    return {
        "accuracy": float((logits.argmax(1) == labels).mean()),
        "confidence": own.confidence,
        "error": own.error,
        "least_error": best.error,
    }


@click.command()
@click.option("--backbone", "model", required=True)
@click.option("--checkpoint", required=True, type=click.Path(path_type=Path))
@click.option("--image-size", required=True, type=int)
@click.option("--data", required=True, type=click.Path(path_type=Path))
@click.option("--tasks", "count", default=6, show_default=True)
@click.option("--images", default="5,20,100", show_default=True, help="Training images a class.")
@click.option("--keep-ratio", default=0.1, show_default=True)
@click.option("--iterations", default=50, show_default=True)
@click.option("--learning-rate", default=0.1, show_default=True)
@click.option("--json", "record", type=click.Path(path_type=Path), help="Record to write.")
def main(
    model: str,
    checkpoint: Path,
    image_size: int,
    data: Path,
    count: int,
    images: str,
    keep_ratio: float,
    iterations: int,
    learning_rate: float,
    record: Path | None,
) -> None:
    """Adapt drawn tasks and judge accuracy and calibration before and after tuning."""
    torch.set_num_threads(1)
    backbone = Backbone.from_timm(
        model, num_classes=classes_of(checkpoint, model, None), image_size=image_size
    )
    weights = read_weights(checkpoint, backbone)
    structure = backbone.structure()
    counts = allot(structure, Budget(keep_ratio=keep_ratio), classes=10)
    mask = Mask.keep_top(structure, magnitude(weights, structure), counts)
    pool = read_pool(data, backbone)
    settings = {
        0: FineTuneSettings(iterations=0),
        iterations: FineTuneSettings(iterations=iterations, learning_rate=learning_rate),
    }

    def rows() -> Iterator[dict[str, Any]]:
        choices = draw_tasks(len(pool.names), count, 10, np.random.default_rng(0), "task")
        for choice in choices:
            for each in map(int, images.split(",")):
                task = pool.task(choice, images=each)
                labels = task.evaluation.labels.numpy()
                for done, how in settings.items():
                    left = {
                        k: v.clone() for k, v in cut(backbone.without_classifiers(weights), mask).items()
                    }
                    network = rebuild(backbone, left, 10, mask)
                    generator = torch.Generator().manual_seed(0)
                    adapted = adapt_network(network, backbone, mask, task, how, generator)
                    yield {
                        "task": choice.name,
                        "images": each,
                        "iterations": done,
                        "kept": adapted.kept,
                        "seconds": adapted.seconds,
                        **judged(logits_of(adapted.network, task), labels),
                    }

    found = []
    for row in rows():
        found.append(row)
        click.echo(json.dumps(row), err=True)
    if record is not None:
        write_whole(record, json.dumps(found, indent=1).encode())
    groups = sorted({(row["images"], row["iterations"]) for row in found})
    table = []
    for group in groups:
        rows_of = [row for row in found if (row["images"], row["iterations"]) == group]
        figures = [mean(row[name] for row in rows_of) for name in ("accuracy", "confidence")]
        errors = [mean(row[name] for row in rows_of) for name in ("error", "least_error")]
        worst = max(row["error"] - row["least_error"] for row in rows_of)
        tuned = sum(row["kept"] > 0 for row in rows_of)
        seconds = mean(sum(row["seconds"].values()) for row in rows_of)
        table.append(
            [
                *group,
                *(f"{100 * figure:.1f}" for figure in figures),
                *(f"{error:.3f}" for error in errors),
                f"{worst:.3f}",
                f"{tuned} of {len(rows_of)}",
                f"{seconds:.1f}",
            ]
        )
    show(
        f"{model}, {keep_ratio:.0%} of the units, {count} tasks of ten classes",
        [
            "images a class",
            "iterations",
            "accuracy, %",
            "confidence, %",
            "ECE",
            "best ECE",
            "largest excess",
            "tuned kept",
            "seconds",
        ],
        table,
    )


if __name__ == "__main__":
    main()
