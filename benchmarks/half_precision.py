"""What half precision changes: bytes, the accuracy of adapted networks, and what a probe finds.

    python -m benchmarks.half_precision --checkpoint resnet18.safetensors --data photographs \\
        --json benchmarks/results/half_precision.json

A ResNet-18 of 64 pixels, cut to a tenth of its internal units by its own importance, adapted to tasks of
ten classes: as float32, as float16 by the same draws, and as float32 by other draws, which tells how
far chance alone moves accuracies. A probe of a quarter of the units in either precision describes more
tasks of the same classes, and each task's nearest others are compared.

A checkpoint that lies in float16 has nothing left to round. Its numbers are moved at random first, within
what its own rounding may have taken of them.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from client.processor import processor
from common.adaptation import Adapted, adapt_network
from common.backbone import Backbone, Weights, read_weights
from common.budget import Budget
from common.exchange import Offer
from common.files import write_whole
from common.fine_tune import FineTuneSettings
from common.fitting import all_features, recalibrate_batch_norm
from common.half_precision import ROUNDING, in_half_precision
from common.images import LabelledImages
from common.importance import magnitude
from common.mask import Mask
from common.probe import Probe
from common.proto_codec import encode_offer
from common.signature import TaskSignature
from common.subnetwork import SubNetwork
from common.tables import show
from common.task_data import Task
from server.budget import allot
from server.founding import PROBE_KEEP_RATIO, make_probe
from server.similarity import ClassStatistics
from simulations.tasks import draw_tasks, read_pool

SIZE, WAYS, KEEP_RATIO = 64, 10, 0.1
EVALUATE_AT = (0, 25, 50)
NEAREST = 5
WAYS_OF_RUNNING = ("float32", "float16", "other draws")


def unrounded(weights: Weights) -> dict[str, Tensor]:
    """Weights of which float16 has rounded something."""
    if any(not torch.equal(half.float(), weights[name]) for name, half in halves(weights).items()):
        return dict(weights)
    draws = torch.Generator().manual_seed(0)
    moved = {
        name: weights[name] * (1 + ROUNDING * (2 * torch.rand(half.shape, generator=draws) - 1))
        for name, half in halves(weights).items()
    }
    return {**weights, **moved}


def halves(weights: Weights) -> dict[str, Tensor]:
    """What travels in half precision."""
    return {n: t for n, t in in_half_precision(weights).items() if t.dtype == torch.float16}


def single_probe(backbone: Backbone, weights: Weights, mask: Mask, images: LabelledImages) -> Probe:
    """The probe as `make_probe` makes it, but for the rounding."""
    network = SubNetwork.of(backbone, weights, mask).network(num_classes=1)
    recalibrate_batch_norm(network, images, torch.Generator().manual_seed(0), count=1024)
    center = all_features(network, images).mean(0).numpy()
    left = backbone.without_classifiers(network.state_dict())
    return Probe(SubNetwork(backbone, mask, left), center)


def accuracies(subnetwork: SubNetwork, task: Task, seed: int) -> dict[int, float]:
    """By iterations done, of a sub-network that is used up."""
    settings = FineTuneSettings(iterations=EVALUATE_AT[-1])
    adapted: Adapted = adapt_network(
        subnetwork.network(WAYS), subnetwork.backbone, subnetwork.mask, task, settings,
        torch.Generator().manual_seed(seed), evaluate_at=EVALUATE_AT,
    )  # fmt: skip
    return adapted.accuracies


def similarities(probe: Probe, signatures: Sequence[TaskSignature]) -> np.ndarray:
    """How near every task is to every other (N, N), and never to itself."""
    index = ClassStatistics.of(probe)
    for number, signature in enumerate(signatures):
        index.add(str(number), signature)
    found = np.stack([index.to(signature)[1] for signature in signatures])
    np.fill_diagonal(found, -1)
    return found


def nearest(similar: np.ndarray) -> list[set[int]]:
    """The nearest others of every task."""
    return [set(np.argsort(-row, kind="stable")[:NEAREST].tolist()) for row in similar]


@click.command()
@click.option("--checkpoint", required=True, type=click.Path(path_type=Path))
@click.option("--data", required=True, type=click.Path(path_type=Path))
@click.option("--tasks", "adapted_tasks", default=8, show_default=True)
@click.option("--described", default=40, show_default=True, help="Tasks that the probes describe.")
@click.option("--images", default=100, show_default=True, help="Training images of a class.")
@click.option("--json", "record", required=True, type=click.Path(path_type=Path))
def main(
    checkpoint: Path, data: Path, adapted_tasks: int, described: int, images: int, record: Path
) -> None:
    """Measure, and write the record after every task."""
    backbone = Backbone.from_timm("resnet18", num_classes=100, image_size=SIZE)
    weights = unrounded(read_weights(checkpoint, backbone))
    half = in_half_precision(weights)
    structure = backbone.structure()

    def mask_of(keep_ratio: float) -> Mask:
        counts = allot(structure, Budget(keep_ratio=keep_ratio), WAYS)
        return Mask.keep_top(structure, magnitude(weights, structure), counts)

    pool = read_pool(data, backbone)
    mask = mask_of(KEEP_RATIO)
    public = pool.task(pool.all_classes, images=10).train
    probes = {
        "float32": single_probe(backbone, weights, mask_of(PROBE_KEEP_RATIO), public),
        "float16": make_probe(backbone, weights, mask_of(PROBE_KEEP_RATIO), public, 0),
    }
    cuts = {
        "float32": SubNetwork.of(backbone, weights, mask),
        "float16": SubNetwork.of(backbone, half, mask),
    }
    found: dict[str, Any] = {
        "command": f"python -m benchmarks.half_precision {' '.join(_without_paths(sys.argv[1:]))}",
        "processor": f"{processor()} ({platform.machine()})",
        "torch": torch.__version__,
        "bytes": {
            way: {
                "offer": len(encode_offer(Offer(backbone, structure, probes[way]))[0]),
                "probe": len(probes[way].to_bytes()),
                "network": len(cuts[way].to_bytes()),
            }
            for way in ("float32", "float16")
        },
    }

    choices = draw_tasks(len(pool.names), described, WAYS, np.random.default_rng(0), "task-")
    similar = {}
    for way, probe in probes.items():
        signatures = [probe.describe(pool.task(c, images=50).train, WAYS) for c in choices]
        similar[way] = similarities(probe, signatures)
    others = ~np.eye(described, dtype=bool)
    true = nearest(np.array([[-1.0 if a is b else a.relatedness(b) for b in choices] for a in choices]))
    near = {way: nearest(matrix) for way, matrix in similar.items()}
    found["probe"] = {
        "tasks": described,
        "largest_difference_of_similarity": float(
            abs(similar["float16"] - similar["float32"])[others].max()
        ),
        "same_nearest": _share(near["float32"], near["float16"]),
        "recall": {way: _share(true, sets) for way, sets in near.items()},
    }

    rows = found["tasks"] = []
    for number, choice in enumerate(choices[:adapted_tasks]):
        task = pool.task(choice, images=images)
        rows.append(
            {"task": choice.name}
            | {
                way: accuracies(
                    SubNetwork.of(backbone, half if way == "float16" else weights, mask),
                    task,
                    seed=number + (1000 if way == "other draws" else 0),
                )
                for way in WAYS_OF_RUNNING
            }
        )
        found["points"] = _points(rows)
        record.parent.mkdir(parents=True, exist_ok=True)
        write_whole(record, json.dumps(found, indent=1).encode() + b"\n")
    show(
        "Points of accuracy, against float32 by the same draws",
        ["iterations", "float16, mean", "spread", "other draws, mean", "spread"],
        [
            [at, *(f"{part[key]:+.2f}" for part in by_way.values() for key in ("mean", "deviation"))]
            for at, by_way in found["points"].items()
        ],
        f"Nearest tasks: {found['probe']}. Bytes: {found['bytes']}.",
    )


def _share(expected: Sequence[set[int]], found: Sequence[set[int]]) -> float:
    """Which share of the expected was found."""
    return float(np.mean([len(a & b) / len(a) for a, b in zip(expected, found, strict=True)]))


def _points(rows: Sequence[dict[str, Any]]) -> dict[int, dict[str, dict[str, float]]]:
    """Mean and deviation over tasks of what each way is above float32."""
    return {
        at: {
            way: {
                "mean": float(np.mean(above)),
                "deviation": float(np.std(above, ddof=1)) if len(above) > 1 else 0.0,
            }
            for way in WAYS_OF_RUNNING[1:]
            if (above := [100 * (row[way][at] - row["float32"][at]) for row in rows])
        }
        for at in EVALUATE_AT
    }


def _without_paths(words: Sequence[str]) -> list[str]:
    """A command line that says nothing of this machine."""
    return [Path(word).name if "/" in word and "results" not in word else word for word in words]


if __name__ == "__main__":
    main()
