"""What artefacts cost to run: torch eager, ONNX and int8; how memory, accuracy and aligned widths do.

    python -m benchmarks.artefacts time --json benchmarks/results/artefacts/time.json
    python -m benchmarks.artefacts widths --json benchmarks/results/artefacts/widths.json
    python -m benchmarks.artefacts accuracy --checkpoint resnet18.safetensors --data photographs \\
        --json benchmarks/results/artefacts/accuracy.json

One thread. Times are CPU milliseconds of that thread, the median over rounds in which all ways take
turns; ratios are of the two times of one round, and again the median. `time` and `widths` take random
weights. `accuracy` takes a ResNet-18 of 64 pixels and a directory of train/CLASS/* and val/CLASS/*.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import timm
import torch
from PIL import Image
from torch import nn

from client.artefacts.exporting import Judges, export_artefact
from client.artefacts.int8 import quantised
from client.artefacts.runnable import Logits, onnx_logits, onnx_session, version_of
from client.export import SavedNetwork, checked_graph
from client.processor import processor
from common.adaptation import adapt_network
from common.backbone import Backbone, read_weights
from common.files import write_whole
from common.images import PixelImages
from common.importance import magnitude
from common.mask import Mask
from common.rebuild import rebuild
from common.structure import Structure
from common.subnetwork import cut
from common.tables import show
from common.task_data import Task
from common.tuning_settings import FineTuneSettings
from simulations.tasks import draw_tasks, read_pool

SIZE = 64
MODELS = {"resnet18": 0.1, "vit_tiny_patch16_224": 1 / 3}
"""Model -> the share of its internal units that is kept."""
WIDTHS = (16, 32, 48, 64, 80, 96, 128, 160, 192, 256)
MEMORY_LIMIT_MB, EAGER_LIMIT, POINTS_LIMIT = 120, 2.0, 1.0

OUT = click.option(
    "--json", "record", required=True, type=click.Path(path_type=Path), help="Record to write."
)
ROUNDS = click.option("--rounds", default=15, show_default=True)


def in_turns(ways: Mapping[str, Callable[[], object]], rounds: int, calls: int) -> dict[str, list[float]]:
    """CPU milliseconds of a call of every way, in every round."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 2):
        for name, call in ways.items():
            began = time.thread_time()
            for _ in range(calls):
                call()
            if number > 1:  # the first ones warm up
                times[name].append(1000 * (time.thread_time() - began) / calls)
    return times


def random_network(model: str, counts: Callable[[Structure], list[int]]) -> SavedNetwork:
    """A sub-network of random weights, of ten classes, at 64 pixels."""
    backbone = Backbone.from_timm(model, num_classes=10, image_size=SIZE)
    structure = backbone.structure()
    torch.manual_seed(0)
    weights = dict(timm.create_model(model, num_classes=10, **backbone.arguments).state_dict())
    mask = Mask.keep_top(structure, magnitude(weights, structure), counts(structure))
    return SavedNetwork(
        rebuild(backbone, cut(weights, mask)),
        backbone,
        tuple(f"class {k}" for k in range(10)),
        mask.digest,
    )


def share(ratio: float) -> Callable[[Structure], list[int]]:
    """This share of the units of every group."""
    return lambda structure: [max(1, round(ratio * units)) for units in structure.sizes]


def noise(backbone: Backbone, count: int) -> PixelImages:
    """Images to calibrate with where only time matters."""
    pixels = torch.randint(256, (count, *backbone.input_size), dtype=torch.uint8)
    return PixelImages(pixels, torch.arange(count) % 10, backbone)


def eager(network: nn.Module, images: np.ndarray) -> Callable[[], object]:
    """A call of torch itself, in the layout that is faster for it."""
    network = network.to(memory_format=torch.channels_last)
    given = torch.from_numpy(images).to(memory_format=torch.channels_last)

    def call() -> object:
        with torch.inference_mode():
            return network(given)

    return call


def peak_of_predict(file: Path, photographs: Path) -> dict[str, Any]:
    """Peak memory in MB of a fresh process that predicts, and whether it imported torch."""
    source = (
        "import sys\nfrom client.cli import main\n"
        f"sys.argv = ['maskvote-client', 'predict', '--network', {str(file)!r}]\n"
        f"sys.argv += [{str(photographs)!r}, '--json']\n"
        "try:\n    main()\nexcept SystemExit as ended:\n    assert not ended.code\n"
        "print(open('/proc/self/status').read(), 'torch' in sys.modules, file=sys.stderr)"
    )
    told = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=True
    ).stderr
    found = re.search(r"VmHWM:\s+(\d+) kB", told)
    assert found is not None
    return {"peak_mb": round(int(found[1]) * 1024 / 1e6, 1), "torch_imported": told.split()[-1] == "True"}


def time_of(model: str, ratio: float, rounds: int) -> dict[str, Any]:
    """Times, ratios, sizes and memory of one sub-network."""
    saved = random_network(model, share(ratio))
    graph = checked_graph(saved).data
    small = quantised(graph, noise(saved.backbone, 32), lambda setting: None).data
    result: dict[str, Any] = {
        "units_kept": ratio,
        "parameters": sum(p.numel() for p in saved.network.parameters()),
        "bytes": {"safetensors": len(saved.to_bytes()), "onnx": len(graph), "onnx-int8": len(small)},
        "batches": {},
    }
    sessions = {
        name: onnx_logits(onnx_session(data, 1)) for name, data in (("onnx", graph), ("int8", small))
    }
    for batch in (1, 32):
        images = np.random.default_rng(0).standard_normal((batch, 3, SIZE, SIZE), dtype=np.float32)
        ways: dict[str, Callable[[], object]] = {"eager": eager(saved.network, images)}
        ways |= {name: _calling(logits, images) for name, logits in sessions.items()}
        times = in_turns(ways, rounds, calls=10 if batch == 1 else 1)
        result["batches"][str(batch)] = {
            "cpu_ms": {name: round(median(taken), 4) for name, taken in times.items()},
            "eager_over_onnx": _ratio(times["eager"], times["onnx"]),
            "onnx_over_int8": _ratio(times["onnx"], times["int8"]),
            "rounds_cpu_ms": {n: [round(t, 4) for t in taken] for n, taken in times.items()},
        }
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        (place / "photographs").mkdir()
        for number in range(50):
            pixels = np.random.default_rng(number).integers(0, 256, (96, 128, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / "photographs" / f"{number}.jpg")
        result["predict"] = {}
        for name, data in (("onnx", graph), ("onnx-int8", small)):
            (place / f"{name}.onnx").write_bytes(data)
            result["predict"][name] = peak_of_predict(place / f"{name}.onnx", place / "photographs")
    return result


def _calling(logits: Logits, images: np.ndarray) -> Callable[[], object]:
    return lambda: logits(images)


def _ratio(above: list[float], below: list[float]) -> float:
    return round(median(a / b for a, b in zip(above, below, strict=True)), 3)


@click.group()
def main() -> None:
    """Measure artefacts."""
    torch.set_num_threads(1)


@main.command("time")
@OUT
@ROUNDS
def time_command(record: Path, rounds: int) -> None:
    """Torch eager against ONNX and int8, sizes, and memory of predict."""
    models = {model: time_of(model, ratio, rounds) for model, ratio in MODELS.items()}
    keep(record, {"rounds": rounds, "models": models})
    show(
        "CPU ms an image or batch, one thread",
        ["model", "batch", "eager", "ONNX", "int8", "eager / ONNX", "ONNX / int8"],
        [
            [model, batch, *facts["cpu_ms"].values(), facts["eager_over_onnx"], facts["onnx_over_int8"]]
            for model, found in models.items()
            for batch, facts in found["batches"].items()
        ],
        f"limits: eager / ONNX at least {EAGER_LIMIT} at batch 1; predict {MEMORY_LIMIT_MB} MB at most: "
        + ", ".join(f"{model} {found['predict']}" for model, found in models.items()),
    )


@main.command()
@OUT
@ROUNDS
def widths(record: Path, rounds: int) -> None:
    """Whether a network is ever slower than the next larger one whose widths are multiples of 16."""
    ladder = sorted({*WIDTHS, *(width - 8 for width in WIDTHS), *(width - 1 for width in WIDTHS)})
    ways = {}
    image = np.random.default_rng(0).standard_normal((1, 3, SIZE, SIZE), dtype=np.float32)
    for width in ladder:
        saved = random_network("resnet18", lambda s, w=width: [min(w, units) for units in s.sizes])  # type: ignore[misc]
        ways[str(width)] = _calling(onnx_logits(onnx_session(checked_graph(saved).data, 1)), image)
    times = in_turns(ways, rounds, calls=5)
    steps = []
    for width in ladder:
        larger = min((w for w in WIDTHS if w > width), default=None)
        if larger is not None:
            steps.append(
                {
                    "width": width,
                    "aligned": width in WIDTHS,
                    "next_aligned": larger,
                    "over_next_aligned": _ratio(times[str(width)], times[str(larger)]),
                }
            )
    found = {name: round(median(taken), 4) for name, taken in times.items()}
    keep(record, {"rounds": rounds, "cpu_ms": found, "steps": steps})
    show(
        "ResNet-18, every internal group at most so wide: onnxruntime, batch 1, one thread",
        ["width", "CPU ms", "next aligned", "over it"],
        [[s["width"], found[str(s["width"])], s["next_aligned"], s["over_next_aligned"]] for s in steps],
    )


@main.command()
@OUT
@click.option("--checkpoint", required=True, type=click.Path(path_type=Path))
@click.option("--data", required=True, type=click.Path(path_type=Path))
@click.option("--tasks", default=4, show_default=True)
@click.option("--ways", default=10, show_default=True)
@click.option("--images", default=100, show_default=True, help="Training images of each class.")
@click.option("--iterations", default=50, show_default=True)
def accuracy(
    record: Path, checkpoint: Path, data: Path, tasks: int, ways: int, images: int, iterations: int
) -> None:
    """What int8 loses on adapted sub-networks of 10 % of a ResNet-18's units."""
    backbone = Backbone.from_timm("resnet18", num_classes=100, image_size=SIZE)
    weights = read_weights(checkpoint, backbone)
    structure = backbone.structure()
    mask = Mask.keep_top(structure, magnitude(weights, structure), share(0.1)(structure))
    pool = read_pool(data, backbone)
    rows = []
    for choice in draw_tasks(len(pool.names), tasks, ways, np.random.default_rng(0), "task-"):
        task = pool.task(choice, images=images)
        rows.append(_lost(choice.name, task, backbone, weights, mask, iterations))
        keep(
            record, {"tasks": rows, "images": images, "iterations": iterations}
        )  # what is done is not lost
    lost = [100 * (row["share_right_float32"] - row["share_right"]) for row in rows]
    keep(
        record,
        {
            "tasks": rows,
            "images": images,
            "iterations": iterations,
            "mean_points_lost": round(float(np.mean(lost)), 3),
        },
    )
    show(
        "Accuracy on evaluation images",
        ["task", "images", "ONNX", "int8", "points lost", "setting"],
        [
            [
                r["task"],
                r["images"],
                r["share_right_float32"],
                r["share_right"],
                round(points, 2),
                r["setting"],
            ]
            for r, points in zip(rows, lost, strict=True)
        ],
        f"at most {POINTS_LIMIT} point each is wanted; the mean is {np.mean(lost):.2f}",
    )


def _lost(
    name: str,
    task: Task,
    backbone: Backbone,
    weights: Mapping[str, torch.Tensor],
    mask: Mask,
    iterations: int,
) -> dict[str, Any]:
    features = {n: t.clone() for n, t in backbone.without_classifiers(weights).items()}
    adapted = adapt_network(
        rebuild(backbone, cut(features, mask), len(task.classes), mask), backbone, mask, task,
        FineTuneSettings(iterations=iterations), torch.Generator().manual_seed(0),
    )  # fmt: skip
    saved = SavedNetwork(adapted.network, backbone, task.classes, mask.digest)
    with tempfile.TemporaryDirectory() as directory:
        judges = Judges(task, tuple(range(len(task.classes))))
        card = export_artefact("onnx-int8", Path(directory, "my.onnx"), saved, judges, lambda doing: None)
    how = card["quantisation"]
    return {
        "task": name,
        "classes": list(task.classes),
        **card["accuracy"],
        "setting": how["setting"],
        "settings_tried": how["settings_tried"],
        "calibration_agreement": how["calibration_agreement"],
    }


def keep(record: Path, found: Mapping[str, Any]) -> None:
    """Write a record: what was found, by which command, where and with what."""
    whole = {
        "command": " ".join(
            ["python -m benchmarks.artefacts", sys.argv[1], *_without_paths(sys.argv[2:])]
        ),
        "processor": f"{processor()} ({platform.machine()})",
        "python": platform.python_version(),
        "versions": [version_of(name) for name in ("torch", "timm", "onnxruntime", "onnx")],
        **found,
    }
    record.parent.mkdir(parents=True, exist_ok=True)
    write_whole(record, json.dumps(whole, indent=1).encode() + b"\n")


def _without_paths(words: list[str]) -> list[str]:
    return [Path(word).name if "/" in word else word for word in words]


if __name__ == "__main__":
    main()
