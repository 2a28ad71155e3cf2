"""What it costs to cut a sub-network into its file, and to make a network of the file again.

    python -m benchmarks.extraction --json benchmarks/results/extraction.json

Random weights, internal units, the same share of every group. Times are CPU time of one thread, the
minimum of so many rounds in which all ways take turns; memory is of a fresh process for every number.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import timm
import torch
from torch import Tensor, nn

from common.backbone import Backbone
from common.files import read_whole, write_whole
from common.importance import magnitude
from common.mask import Mask
from common.structure import Structure
from common.subnetwork import SubNetwork
from common.tables import show

COPY_LIMIT = 3.0
"""Cutting and serialising may take so many times what copying the kept tensors takes."""
TORCH_PRUNING_LIMIT = 20.0
"""How many times faster than Torch-Pruning's graph and pruning that has to be."""
REBUILD_LIMIT_MS = 100.0
MEMORY_LIMIT = 1.5
"""Peak memory of a device from the file to the network, in sizes of the file."""
CLASSES = 10

Times = Mapping[str, list[float]]


def taking_turns(ways: Mapping[str, Callable[[], Callable[[], object]]], rounds: int) -> Times:
    """CPU milliseconds of every way in every round, and in the caches that the others left it.

    What gets a way ready is not counted, nor is the first round, in which plans are compiled.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, ready in ways.items():
            run = ready()
            began = time.thread_time()
            done = run()
            took = 1000 * (time.thread_time() - began)
            del done, run
            if number:
                times[name].append(took)
    return times


def copied(tensors: list[Tensor]) -> list[Tensor]:
    """The yardstick: every tensor copied once, each into memory that was just allocated."""
    return [torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor) for tensor in tensors]


def torch_pruned(network: nn.Module, mask: Mask, size: tuple[int, ...]) -> nn.Module:
    """The same units dropped by Torch-Pruning: its graph, then every group where its units are read."""
    import torch_pruning

    graph = torch_pruning.DependencyGraph().build_dependency(network, (torch.zeros(1, *size),))
    cut = {
        nn.Conv2d: torch_pruning.prune_conv_in_channels,
        nn.Linear: torch_pruning.prune_linear_in_channels,
    }
    for group in mask.structure.groups:
        reader = next(m for m in group.members if m.reads and m.dim == 1)
        layer = network.get_submodule(reader.tensor.removesuffix(".weight"))
        gone = np.flatnonzero(~mask[group.name][reader.unit_of]).tolist()
        if gone:
            graph.get_pruning_group(layer, cut[type(layer)], idxs=gone).prune()
    return network


def check_same(pruned: nn.Module, subnetwork: SubNetwork) -> None:
    """Both ways leave the same tensors, or the comparison means nothing."""
    theirs = pruned.state_dict()
    differing = [n for n, t in subnetwork.weights.items() if not torch.equal(theirs[n], t)]
    if differing:
        raise SystemExit(f"Torch-Pruning leaves other tensors: {', '.join(differing[:5])}")


def peak(file: str, structure_file: str, probed: str) -> None:
    """Print a fresh process's peak memory in bytes, and CPU ms, from the file to the network.

    `probed` is a backbone's description where the process has built such a network before, as a
    device has its probe, and "" where it has imported torch and timm, and no more.
    """
    torch.set_num_threads(1)
    structure = Structure.from_json(bytes(read_whole(Path(structure_file))))
    if probed:
        Backbone.from_json(probed).skeleton()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before, began = _status("VmRSS"), time.thread_time()
    network = SubNetwork.from_bytes(read_whole(Path(file)), structure).network(CLASSES)
    took = 1000 * (time.thread_time() - began)
    print(json.dumps({"peak_bytes": _status("VmHWM") - before, "first_ms": took}))
    del network


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


def in_a_fresh_process(subnetwork: SubNetwork, probed: bool) -> dict[str, float]:
    """What `peak` prints for this sub-network."""
    before = subnetwork.backbone.to_json() if probed else ""
    with tempfile.TemporaryDirectory() as directory:
        file, structure_file = Path(directory, "network"), Path(directory, "structure")
        write_whole(file, subnetwork.to_bytes())
        write_whole(structure_file, subnetwork.mask.structure.to_json().encode())
        arguments = str(file), str(structure_file), before
        code = f"from benchmarks.extraction import peak; peak(*{arguments!r})"
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def measure(model: str, keep_ratio: float, rounds: int) -> dict[str, Any]:
    """All numbers of one backbone at one keep ratio."""
    backbone = Backbone.from_timm(model)
    structure = backbone.structure()
    network = timm.create_model(model).eval()
    weights = network.state_dict()
    counts = [max(1, round(keep_ratio * units)) for units in structure.sizes]
    mask = Mask.keep_top(structure, magnitude(weights, structure), counts)
    subnetwork = SubNetwork.of(backbone, weights, mask)
    check_same(torch_pruned(deepcopy(network), mask, backbone.input_size), subnetwork)
    kept = [tensor.clone() for tensor in subnetwork.weights.values()]
    file = bytes(subnetwork.to_bytes())

    def pruning() -> Callable[[], object]:
        whole = deepcopy(network)
        return lambda: torch_pruned(whole, mask, backbone.input_size)

    def rebuilding() -> Callable[[], object]:
        received = bytearray(file)
        return lambda: SubNetwork.from_bytes(received, structure).network(CLASSES)

    times = taking_turns(
        {
            "copy": lambda: lambda: copied(kept),
            "cut_and_serialise": lambda: lambda: SubNetwork.of(backbone, weights, mask).to_bytes(),
            "torch_pruning": pruning,
            "rebuild": rebuilding,
        },
        rounds,
    )
    best = {name: min(values) for name, values in times.items()}
    fresh, first = (in_a_fresh_process(subnetwork, probed) for probed in (True, False))
    return {
        "model": model,
        "keep_ratio": keep_ratio,
        "kept_bytes": sum(t.numel() * t.element_size() for t in kept),
        "tensors": len(kept),
        "ms": best,
        "median_ms": {name: median(values) for name, values in times.items()},
        "copies": best["cut_and_serialise"] / best["copy"],
        "torch_pruning_ratio": best["torch_pruning"] / best["cut_and_serialise"],
        "first_rebuild_ms": first["first_ms"],
        "peak_ratio": fresh["peak_bytes"] / len(file),
        "first_peak_ratio": first["peak_bytes"] / len(file),
        "all_ms": times,
    }


def within_limits(record: Mapping[str, Any]) -> bool:
    return (
        record["copies"] <= COPY_LIMIT
        and record["torch_pruning_ratio"] >= TORCH_PRUNING_LIMIT
        and record["ms"]["rebuild"] <= REBUILD_LIMIT_MS
        and record["peak_ratio"] <= MEMORY_LIMIT
    )


@click.command()
@click.option(
    "--model", "models", multiple=True, default=["resnet18", "resnet50", "vit_small_patch16_224"]
)
@click.option("--keep-ratio", "ratios", multiple=True, type=float, default=[0.5, 0.1])
@click.option("--rounds", default=20, show_default=True)
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write the record here.")
def main(models: tuple[str, ...], ratios: tuple[float, ...], rounds: int, out: Path | None) -> None:
    """Measure and compare with the limits."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    records = [measure(model, ratio, rounds) for model in models for ratio in ratios]
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(records, indent=1) + "\n")

    def spread(record: Mapping[str, Any], name: str) -> str:
        return f"{record['ms'][name]:.2f} ({record['median_ms'][name]:.2f})"

    show(
        f"CPU ms of one thread: least of {rounds} rounds (median); limits {COPY_LIMIT:g} copies, "
        f"Torch-Pruning / {TORCH_PRUNING_LIMIT:g}, {REBUILD_LIMIT_MS:g} ms, {MEMORY_LIMIT:g} files",
        [
            "model", "kept", "kept bytes", "copy", "cut + serialise", "copies", "Torch-Pruning", "ratio",
            "rebuild", "peak / file", "first rebuild", "first peak / file",
        ],
        [
            [
                r["model"], f"{r['keep_ratio']:.0%}", f"{r['kept_bytes']:,}", spread(r, "copy"),
                spread(r, "cut_and_serialise"), f"{r['copies']:.2f}", spread(r, "torch_pruning"),
                f"{r['torch_pruning_ratio']:.0f}", spread(r, "rebuild"), f"{r['peak_ratio']:.2f}",
                f"{r['first_rebuild_ms']:.0f}", f"{r['first_peak_ratio']:.2f}",
            ]
            for r in records
        ],
    )  # fmt: skip
    over = [f"{r['model']} at {r['keep_ratio']:.0%}" for r in records if not within_limits(r)]
    raise SystemExit(f"over the limits: {', '.join(over)}" if over else 0)


if __name__ == "__main__":
    main()
