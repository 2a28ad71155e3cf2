"""Benchmark: how long this device takes for sub-networks of many sizes, with weights that say nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from client.artefacts.runnable import onnx_logits, onnx_session, version_of
from client.export import SavedNetwork, checked_graph
from client.latency_table import Device, MeasuredTable
from common.backbone import Backbone
from common.budget import Counts, LatencyTable
from common.fitting import on_device_of
from common.mask import Mask
from common.rebuild import rebuild
from common.structure import Structure
from common.subnetwork import cut

RATIOS = (0.02, 0.03, 0.05, 0.08, 0.12, 0.18, 0.25, 0.35, 0.5, 0.7, 1.0)
"""Keep ratios that are measured."""
MULTIPLES = (1, 4, 8, 16, 32)
"""What widths are tried as multiples of, at MULTIPLES_AT."""
MULTIPLES_AT = (0.2, 0.23, 0.27, 0.3)
TOLERANCE = 1.03
"""A smaller multiple is preferred where time per operation is at most so many times the best one's."""
RUNS, SECONDS = 15, 0.4
"""A size is measured at least so often, and so long."""

Watch = Callable[[int, int], None]


@dataclass(frozen=True)
class Runtime:
    """What runs networks here: how a table names it, and the least milliseconds of a network's image."""

    version: Callable[[], str]
    milliseconds: Callable[[nn.Module, Backbone], float]


def benchmark(
    backbone: Backbone, structure: Structure, classes: int, runtime: Runtime, watch: Watch | None = None
) -> MeasuredTable:
    """The latency table of this device: one image at a time, by a runtime, the least of several runs.

    What else the device does at the same time only ever adds to a run, and is not the network's. What
    its kernels like is found first: the multiple of channels at which an operation takes least time. No
    weights of the backbone are needed: they are drawn at random, for one network after the other.
    Errors are the runtime's.
    """
    steps = len(RATIOS) + len(MULTIPLES)
    done = 0

    @cache
    def measured(counts: Counts) -> float:
        network = random_network(backbone, structure, counts, classes)
        return runtime.milliseconds(network, backbone)

    def tick() -> None:
        nonlocal done
        done += 1
        if watch is not None:
            watch(done, steps)

    multiple = best_multiple(structure, classes, measured, tick)
    points: dict[int, float] = {}
    for ratio in RATIOS:
        counts = counts_at(structure, ratio, multiple)
        flops = structure.flops(counts, classes)
        if flops not in points:
            points[flops] = measured(counts)
        tick()
    table = LatencyTable(structure.digest, tuple(sorted(points.items())))
    return MeasuredTable(table, multiple, Device.here(runtime.version(), torch.get_num_threads()))


def best_multiple(
    structure: Structure,
    classes: int,
    measured: Callable[[Counts], float],
    tick: Callable[[], None] = lambda: None,
) -> int:
    """The smallest multiple of channels at which operations take about as little time as at the best."""
    price = {}
    for multiple in MULTIPLES:
        sizes = {counts_at(structure, ratio, multiple) for ratio in MULTIPLES_AT}
        flops = sum(structure.flops(counts, classes) for counts in sizes)
        price[multiple] = sum(measured(counts) for counts in sizes) / flops
        tick()
    limit = TOLERANCE * min(price.values())
    return min(multiple for multiple, per_operation in price.items() if per_operation <= limit)


def counts_at(structure: Structure, ratio: float, multiple: int) -> Counts:
    """Units of every group at a keep ratio, the nearest multiples, at least one of them."""
    return tuple(
        min(size, max(1, multiple * max(1, round(ratio * size / multiple)))) for size in structure.sizes
    )


def random_network(backbone: Backbone, structure: Structure, counts: Counts, classes: int) -> nn.Module:
    """A sub-network with so many units per group, and weights drawn at random, in evaluation mode."""
    mask = Mask.of(
        structure,
        {
            group.name: torch.arange(group.units).lt(count).numpy()
            for group, count in zip(structure.groups, counts, strict=True)
        },
    )
    shapes = cut(backbone.without_classifiers(backbone.skeleton().state_dict()), mask)
    generator = torch.Generator().manual_seed(0)
    weights = {name: _drawn(name, tensor, generator) for name, tensor in shapes.items()}
    return rebuild(backbone, weights, classes, mask)


def _drawn(name: str, shape: Tensor, generator: torch.Generator) -> Tensor:
    if not shape.dtype.is_floating_point:
        return torch.zeros(shape.shape, dtype=shape.dtype)
    if name.endswith("running_var"):
        return torch.ones(shape.shape)
    return 0.05 * torch.randn(shape.shape, generator=generator)


def milliseconds(network: nn.Module, backbone: Backbone) -> float:
    """The least time for one image, by PyTorch."""
    # Only here: of channels-last tensors the exporter makes another graph than of those in a file.
    network = network.to(memory_format=torch.channels_last)
    image = on_device_of(network, torch.zeros(1, *backbone.input_size))
    with torch.inference_mode():
        return 1000 * min(_seconds(lambda: network(image)))


def onnx_milliseconds(network: nn.Module, backbone: Backbone) -> float:
    """The least time for one image, by onnxruntime, of the graph that `maskvote-client export` writes.

    It is never on disk. onnxruntime has as many threads as PyTorch. Errors as of `checked_graph`.
    """
    outputs = len(network.state_dict()[backbone.classifier_tensors[0]])
    graph = checked_graph(SavedNetwork(network, backbone, tuple(map(str, range(outputs)))))
    logits = onnx_logits(onnx_session(graph.data, torch.get_num_threads()))
    image = torch.zeros(1, *backbone.input_size).numpy()
    return 1000 * min(_seconds(lambda: logits(image)))


def _seconds(run: Callable[[], object]) -> Iterator[float]:
    """Of each of several runs."""
    began, runs = time.perf_counter(), 0
    while runs < RUNS or time.perf_counter() - began < SECONDS:
        at = time.perf_counter()
        run()
        yield time.perf_counter() - at
        runs += 1


RUNTIMES = {
    "torch": Runtime(lambda: f"torch {torch.__version__}", milliseconds),
    "onnx": Runtime(lambda: version_of("onnxruntime"), onnx_milliseconds),
}
"""By the names that the command line has for them."""
