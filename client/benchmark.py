"""Benchmark: how long this device takes for sub-networks of many sizes, with weights that say nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

import numpy as np
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
from common.signature import MAX_CLASSES
from common.structure import Structure
from common.subnetwork import cut

SIZES = 14
"""Networks that are measured from the smallest to the whole; fewer where the structure has fewer."""
MULTIPLES = (1, 4, 8, 16, 32)
"""What widths are tried as multiples of, at MULTIPLES_AT."""
MULTIPLES_AT = (0.2, 0.23, 0.27, 0.3)
TOLERANCE = 1.03
"""A smaller multiple is preferred where time per operation is at most so many times the best one's."""
ROUNDS = 10
"""Every size has its turn in each round: what slows the device for a while slows all of them."""
RUNS, SECONDS = 3, 0.03
"""In its turn a size runs at least so often, and so long."""
RATIOS = np.geomspace(0.001, 1, 200)
"""Keep ratios that sizes are chosen from."""

Run = Callable[[], object]
"""Classifies one image."""
Measure = Callable[[Sequence["Size"]], Sequence[tuple[float, ...]]]
"""The milliseconds of an image for every size, round by round."""
Watch = Callable[[int, int], None]


@dataclass(frozen=True)
class Runtime:
    """What runs networks here: how a table names it, and how it makes a network ready to run."""

    version: Callable[[], str]
    ready: Callable[[nn.Module, Backbone], Run]


@dataclass(frozen=True)
class Size:
    """Units of every group of a network, and its classes."""

    counts: Counts
    classes: int


def benchmark(
    backbone: Backbone, structure: Structure, classes: int, runtime: Runtime, watch: Watch | None = None
) -> MeasuredTable:
    """The latency table of this device: one image at a time, by a runtime.

    The smallest sub-network and the whole backbone are measured, and sizes evenly in between; the whole
    also with as many classes as a task may have, so that the table covers every task. What else the
    device does only ever adds to a run, and for a while: so the sizes take turns in several rounds, and
    the least of a size counts (see `rising`).

    What the device's kernels like is found first: the multiple of channels at which an operation takes
    least time. No weights of the backbone are needed: they are drawn at random. The networks of all sizes
    are in memory at once, three to four times the whole backbone. Errors are the runtime's.
    """
    # The number of sizes is known once the multiple is.
    turns = _Turns(len(MULTIPLES) * len(MULTIPLES_AT) + SIZES, watch)

    def measured(sizes: Sequence[Size]) -> list[tuple[float, ...]]:
        runs = []
        for size in sizes:
            network = random_network(backbone, structure, size.counts, size.classes)
            runs.append(runtime.ready(network, backbone))
            turns.end()
        return in_rounds(runs, turns.end)

    multiple = best_multiple(structure, classes, measured)
    sizes = sizes_of(structure, classes, multiple)
    turns.are_left(len(sizes))
    rounds = measured(sizes)
    operations = [structure.flops(size.counts, size.classes) for size in sizes]
    times = rising([min(of_size) for of_size in rounds])
    table = LatencyTable(structure.digest, tuple(zip(operations, times, strict=True)))
    device = Device.here(runtime.version(), torch.get_num_threads())
    return MeasuredTable(table, multiple, device, tuple(rounds))


class _Turns:
    """Counts the turns of sizes: each has one to be made ready, and one a round."""

    def __init__(self, sizes: int, watch: Watch | None) -> None:
        self._ended = 0
        self._watch = watch
        self.are_left(sizes)

    def are_left(self, sizes: int) -> None:
        self._all = self._ended + sizes * (1 + ROUNDS)

    def end(self) -> None:
        self._ended += 1
        if self._watch is not None:
            self._watch(self._ended, self._all)


def in_rounds(runs: Sequence[Run], tick: Callable[[], None] = lambda: None) -> list[tuple[float, ...]]:
    """The milliseconds of every run, by rounds in which all take turns; every other one backwards.

    So that a device that grows slower or faster meanwhile favours none.
    """
    times: list[list[float]] = [[] for _ in runs]
    for number in range(ROUNDS):
        order = range(len(runs)) if number % 2 == 0 else reversed(range(len(runs)))
        for at in order:
            times[at].append(1000 * min(_seconds(runs[at])))
            tick()
    return [tuple(of_run) for of_run in times]


def rising(times: Sequence[float]) -> tuple[float, ...]:
    """The times of networks of rising size, none of them slower than a larger one.

    A network that was slower than a larger one was disturbed by other work, which never makes one
    faster: it takes the time of the fastest larger one at most. Times that rise already stay.
    """
    return tuple(accumulate(reversed(times), min))[::-1]


def best_multiple(structure: Structure, classes: int, measured: Measure) -> int:
    """The smallest multiple of channels at which operations take about as little time as at the best.

    Multiples are compared at several keep ratios, all of them by turns at each.
    """
    spent = dict.fromkeys(MULTIPLES, 0.0)
    flops = dict.fromkeys(MULTIPLES, 0)
    for ratio in MULTIPLES_AT:
        size_at = {
            multiple: Size(counts_at(structure, ratio, multiple), classes) for multiple in MULTIPLES
        }
        sizes = list(dict.fromkeys(size_at.values()))
        time_of = dict(zip(sizes, map(min, measured(sizes)), strict=True))
        for multiple, size in size_at.items():
            spent[multiple] += time_of[size]
            flops[multiple] += structure.flops(size.counts, classes)
    price = {multiple: spent[multiple] / flops[multiple] for multiple in MULTIPLES}
    limit = TOLERANCE * min(price.values())
    return min(multiple for multiple, per_operation in price.items() if per_operation <= limit)


def counts_at(structure: Structure, ratio: float, multiple: int) -> Counts:
    """Units of every group at a keep ratio, the nearest multiples, at least one of them."""
    return tuple(
        min(size, max(1, multiple * max(1, round(ratio * size / multiple)))) for size in structure.sizes
    )


def sizes_of(structure: Structure, classes: int, multiple: int) -> list[Size]:
    """The sizes to measure, by rising operations: each has about so many times those of the one before.

    The first is the smallest sub-network, the last two the whole backbone: for so many classes, and for
    as many as a task may have. Widths are multiples of `multiple`, or of its half, a quarter, ... where
    only those come near the operations wanted, as the server deals them.
    """

    def operations(counts: Counts) -> int:
        return structure.flops(counts, classes)

    @cache
    def choices(multiple: int) -> dict[int, Counts]:
        return {operations(c): c for ratio in RATIOS if (c := counts_at(structure, ratio, multiple))}

    least, most = operations(structure.smallest), operations(structure.sizes)
    factor = (most / least) ** (1 / (SIZES - 1))
    found = {least: structure.smallest, most: structure.sizes}
    for step in range(1, SIZES - 1):
        wanted, tried = least * factor**step, multiple
        while True:
            near = min(choices(tried), key=lambda flops: abs(math.log(flops / wanted)))
            if tried == 1 or 1 / factor < (near / wanted) ** 2 < factor:
                break
            tried //= 2
        found[near] = choices(tried)[near]
    sizes = [Size(counts, classes) for _, counts in sorted(found.items())]
    return [*sizes, Size(structure.sizes, MAX_CLASSES)] if classes < MAX_CLASSES else sizes


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


def torch_run(network: nn.Module, backbone: Backbone) -> Run:
    """Classifies one image by PyTorch."""
    # Only here: of channels-last tensors the exporter makes another graph than of those in a file.
    network = network.to(memory_format=torch.channels_last)
    image = on_device_of(network, torch.zeros(1, *backbone.input_size))

    def run() -> object:
        with torch.inference_mode():
            return network(image)

    return run


def onnx_run(network: nn.Module, backbone: Backbone) -> Run:
    """Classifies one image by onnxruntime, with the graph that `maskvote-client export` writes.

    It is never on disk. onnxruntime has as many threads as PyTorch. Errors as of `checked_graph`.
    """
    outputs = len(network.state_dict()[backbone.classifier_tensors[0]])
    graph = checked_graph(SavedNetwork(network, backbone, tuple(map(str, range(outputs)))))
    logits = onnx_logits(onnx_session(graph.data, torch.get_num_threads()))
    image = torch.zeros(1, *backbone.input_size).numpy()
    return lambda: logits(image)


def _seconds(run: Callable[[], object]) -> Iterator[float]:
    """Of each of several runs."""
    began, runs = time.perf_counter(), 0
    while runs < RUNS or time.perf_counter() - began < SECONDS:
        at = time.perf_counter()
        run()
        yield time.perf_counter() - at
        runs += 1


RUNTIMES = {
    "torch": Runtime(lambda: f"torch {torch.__version__}", torch_run),
    "onnx": Runtime(lambda: version_of("onnxruntime"), onnx_run),
}
"""By the names that the command line has for them."""
