"""What a fine-tuning step of a sub-network takes, against the dense network and against masking alone.

    python -m benchmarks.steps --json benchmarks/results/edge/steps.json

A step is fine_tune's own: images from memory, forward, backward, first-order Taylor, clipping, and the
optimiser's step. Random weights; one thread. In every round all ways take turns, so that each has the
caches that the others left it; CPU and wall time are the least of the rounds. `plain` is a bare loop
without Taylor and clipping; `bf16`, `head` and `channels_last` are fine_tune's with that one difference,
`channels_last` for weights that lie so too; `compile` is the bare loop through torch.compile.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import click
import timm
import torch
from torch import nn
from torch.nn import functional

from common.backbone import Backbone
from common.files import write_whole
from common.fitting import on_device_of
from common.images import PixelImages
from common.importance import magnitude
from common.mask import Mask
from common.pruning import stages_of
from common.rebuild import rebuild
from common.subnetwork import cut, masked
from common.tables import show
from common.tuning import Tuning
from common.tuning_settings import FineTuneSettings

CLASSES = 10
CASES: Mapping[str, dict[str, Any]] = {
    "resnet18": {"image_size": 64, "batch": 32, "share": 0.1, "limit": 3.7},
    "vit_tiny_patch16_224": {"image_size": 224, "batch": 8, "share": 1 / 3, "limit": 2.9},
}
"""`limit` is how many times faster the sub-network's step has to be than either of the other two."""
NETWORKS = ("dense", "masked", "cut")

Step = Callable[[], object]


class Case:
    """A backbone of random weights, whole, masked, and cut to a share of every group's units."""

    def __init__(self, model: str, image_size: int, batch: int, share: float, limit: float) -> None:
        self.backbone = Backbone.from_timm(model, image_size=image_size, num_classes=CLASSES)
        self.structure = self.backbone.structure()
        self.limit, self.batch = limit, batch
        self.counts = [max(1, round(share * units)) for units in self.structure.sizes]
        self.weights = timm.create_model(
            model, num_classes=CLASSES, **self.backbone.arguments
        ).state_dict()
        small = Mask.keep_top(self.structure, magnitude(self.weights, self.structure), self.counts)
        self.masks = {"dense": Mask.full(self.structure), "cut": small}
        self.masks["masked"] = self.masks["dense"]
        lot = torch.Generator().manual_seed(0)
        pixels = torch.randint(256, (4 * batch, *self.backbone.input_size), generator=lot)
        labels = torch.arange(4 * batch) % CLASSES
        self.images = PixelImages(pixels.to(torch.uint8), labels, self.backbone)

    def network(self, kind: str) -> nn.Module:
        """A network of its own tensors."""
        weights = {name: tensor.clone() for name, tensor in self.weights.items()}
        if kind != "dense":
            weights = {"masked": masked, "cut": cut}[kind](weights, self.masks["cut"])
        return rebuild(self.backbone, weights)

    def real(self, kind: str, steps: int, channels_last: bool = False, **changes: Any) -> Step:
        """So many iterations of what `adapt` does."""
        network = self.network(kind)
        if channels_last:
            network = network.to(memory_format=torch.channels_last)
        settings = FineTuneSettings(iterations=steps, batch_size=self.batch, learning_rate=1e-3)
        settings = replace(settings, **changes)
        lot = torch.Generator().manual_seed(0)
        mask = self.masks[kind]
        stages = stages_of(settings, mask)
        return lambda: Tuning(network, self.backbone, mask, self.images, settings, lot, stages).run()

    def plain(self, kind: str, steps: int, compiled: bool = False) -> Step:
        """So many iterations of a bare loop on one batch."""
        network = self.network(kind).train()
        forward = torch.compile(network) if compiled else network
        batch = on_device_of(network, self.images.batch(torch.arange(self.batch)))
        labels = self.images.labels[: self.batch]
        optimiser = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, nesterov=True)

        def loop() -> None:
            for _ in range(steps):
                optimiser.zero_grad()
                functional.cross_entropy(forward(batch), labels).backward()
                optimiser.step()

        return loop


def measured(ways: Mapping[str, Step], rounds: int, steps: int) -> dict[str, dict[str, list[float]]]:
    """CPU and wall milliseconds a step, of every way and round; a first round is not counted."""
    times: dict[str, dict[str, list[float]]] = {name: {"cpu_ms": [], "wall_ms": []} for name in ways}
    for number in range(rounds + 1):
        for name, run in ways.items():
            cpu, wall = time.process_time(), time.perf_counter()
            run()
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            if number:
                times[name]["cpu_ms"].append(1000 * cpu / steps)
                times[name]["wall_ms"].append(1000 * wall / steps)
    return times


def measure(model: str, rounds: int, steps: int, compiled: bool) -> dict[str, Any]:
    """All numbers of one backbone."""
    case = Case(model, **CASES[model])
    ways = {kind: case.real(kind, steps) for kind in NETWORKS}
    for kind in ("dense", "cut"):
        ways[f"{kind} plain"] = case.plain(kind, steps)
        ways[f"{kind} bf16"] = case.real(kind, steps, precision="bf16")
        ways[f"{kind} channels_last"] = case.real(kind, steps, channels_last=True)
        if compiled:
            ways[f"{kind} compile"] = case.plain(kind, steps, compiled=True)
    ways["cut micro-batch"] = case.real("cut", steps, micro_batch=max(1, case.batch // 4))
    times = measured(ways, rounds, steps)
    best = {name: {unit: min(values) for unit, values in both.items()} for name, both in times.items()}

    def faster(unit: str, kind: str = "") -> dict[str, float]:
        own = best[f"cut{kind}"][unit]
        return {
            name: best[f"{name}{kind}"][unit] / own
            for name in ("dense", "masked")
            if f"{name}{kind}" in best
        }

    return {
        "model": model,
        **CASES[model],
        "torch": torch.__version__,
        "rounds": rounds,
        "steps": steps,
        "flop_share": case.structure.flops(case.counts) / case.structure.flops(),
        "parameters": case.structure.parameters(case.counts, CLASSES),
        "faster": {unit: faster(unit) for unit in ("cpu_ms", "wall_ms")},
        "faster_bf16": faster("cpu_ms", " bf16"),
        "least_ms": best,
        "median_cpu_ms": {name: median(both["cpu_ms"]) for name, both in times.items()},
        "all_ms": times,
    }


def within_limits(record: Mapping[str, Any]) -> bool:
    return min(record["faster"]["cpu_ms"].values()) >= record["limit"]


@click.command()
@click.option("--model", "models", multiple=True, type=click.Choice(list(CASES)), default=list(CASES))
@click.option("--rounds", default=5, show_default=True)
@click.option("--steps", default=3, show_default=True, help="Iterations a round.")
@click.option("--compile", "compiled", is_flag=True, help="torch.compile too: minutes, and a compiler.")
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write the record here.")
def main(models: tuple[str, ...], rounds: int, steps: int, compiled: bool, out: Path | None) -> None:
    """Measure and compare with the limits."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    records = [measure(model, rounds, steps, compiled) for model in models]
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, (json.dumps(records, indent=1) + "\n").encode())
    for record in records:
        faster = record["faster"]["cpu_ms"]
        show(
            f"{record['model']} at {record['image_size']}, batch {record['batch']}: a step of the cut "
            f"network is {faster['dense']:.2f} x faster than the dense one's, {faster['masked']:.2f} x "
            f"than masking (limit {record['limit']:g}); {1 / record['flop_share']:.2f} x fewer FLOPs",
            ["way", "CPU ms a step", "median", "wall ms"],
            [
                [way, f"{t['cpu_ms']:.1f}", f"{record['median_cpu_ms'][way]:.1f}", f"{t['wall_ms']:.1f}"]
                for way, t in record["least_ms"].items()
            ],
        )
    over = [record["model"] for record in records if not within_limits(record)]
    raise SystemExit(f"below the limits: {', '.join(over)}" if over else 0)


if __name__ == "__main__":
    main()
