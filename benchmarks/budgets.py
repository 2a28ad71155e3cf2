"""Random budgets: is one ever exceeded, and how much of it is used?

    python -m benchmarks.budgets --out benchmarks/results/edge/budgets.json

Each budget limits one to three of parameters, operations, bytes of weights, bytes of activations and
milliseconds, each somewhere on the way, in the log, from the smallest sub-network to the backbone; every
other one asks for multiples of 8 or 16. Milliseconds are those of a latency table that rises with the
operations. Parameters, operations and bytes are counted on the network that is built, not by the formula
that the budget was dealt by.
"""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from common.backbone import Backbone
from common.budget import Budget, Counts, LatencyTable, demands
from common.errors import BudgetError
from common.flops import counted_flops
from common.mask import Mask
from common.rebuild import rebuild
from common.structure import Structure
from common.subnetwork import cut
from common.tables import show
from server.budget import allot

MODELS = {
    "resnet18": 64,
    "mobilenetv3_small_100": 64,
    "vit_tiny_patch16_224": 64,
    "efficientnet_b0": 64,
    "convnext_atto": 64,
}
LIMITS = ("parameters", "flops", "weight_bytes", "activation_bytes", "latency_ms")
CLASSES = 10
USED = 0.97
BUILT = 20
"""Of every model so many networks are built and counted."""


def table_of(structure: Structure) -> LatencyTable:
    """A device that takes a millisecond for 20 million operations, and half of one for anything."""
    sizes = [[max(1, round(r * n)) for n in structure.sizes] for r in (0.0, 0.05, 0.1, 0.2, 0.4, 0.7, 1)]
    flops = sorted({structure.flops(kept, CLASSES) for kept in sizes})
    return LatencyTable(structure.digest, tuple((at, 0.5 + at / 2e7) for at in flops))


def random_budget(structure: Structure, lot: np.random.Generator) -> Budget:
    """Some limits, drawn by lot."""
    table = table_of(structure)
    costs: dict[str, Any] = {n: partial(getattr(structure, n), classes=CLASSES) for n in LIMITS[:-1]}
    costs["latency_ms"] = lambda kept: table.milliseconds(structure.flops(kept, CLASSES))
    limits: dict[str, Any] = {}
    for name in lot.choice(LIMITS, size=lot.integers(1, 4), replace=False):
        least, most = costs[name](structure.smallest), costs[name](structure.sizes)
        limit = least * (most / least) ** lot.random()
        limits[str(name)] = float(limit) if name == "latency_ms" else int(np.ceil(limit))
    multiple = int(lot.choice([1, 1, 8, 16]))
    return Budget(**limits, latency=table if "latency_ms" in limits else None, multiple=multiple)


def could_be_larger(structure: Structure, budget: Budget, kept: Counts) -> bool:
    """Whether a unit of some group, by itself, could have been added."""
    limits = demands(structure, budget, CLASSES)
    for group, size in enumerate(structure.sizes):
        more = [have + (at == group) for at, have in enumerate(kept)]
        if kept[group] < size and all(limit.fits(more) for limit in limits):
            return True
    return False


def counted(backbone: Backbone, structure: Structure, kept: Counts) -> dict[str, int]:
    """What the network has that keeps so many units, counted on the network itself."""
    import torch

    rows = {g.name: np.arange(g.units) < n for g, n in zip(structure.groups, kept, strict=True)}
    mask = Mask.of(structure, rows)
    shapes = cut(backbone.without_classifiers(backbone.skeleton().state_dict()), mask)
    weights = {name: torch.zeros(t.shape, dtype=t.dtype) for name, t in shapes.items()}
    network = rebuild(backbone, weights, CLASSES, mask)
    tensors = network.state_dict().values()
    return {
        "parameters": sum(p.numel() for p in network.parameters()),
        "flops": counted_flops(network, backbone.input_size),
        "weight_bytes": sum(t.numel() * t.element_size() for t in tensors),
    }


@click.command()
@click.option("--budgets", default=200, help="Of every model.")
@click.option("--seed", default=0)
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(budgets: int, seed: int, out: Path) -> None:
    """Deal random budgets of five models."""
    rows, records = [], []
    for model, size in MODELS.items():
        backbone = Backbone.from_timm(model, num_classes=CLASSES, image_size=size)
        structure = backbone.structure(("internal", "residual"))
        lot = np.random.default_rng([seed, len(rows)])
        own: list[dict[str, Any]] = []
        while len(own) < budgets:
            budget = random_budget(structure, lot)
            began = time.perf_counter()
            try:
                kept = allot(structure, budget, CLASSES)
            except BudgetError as error:
                own.append({"model": model, "error": str(error)})
                continue
            took = time.perf_counter() - began
            limits = demands(structure, budget, CLASSES)
            built = counted(backbone, structure, kept) if len(own) < BUILT else {}
            over = any(not limit.fits(kept) for limit in limits) or any(
                size > limit
                for name, size in built.items()
                if (limit := getattr(budget, name)) is not None
            )
            own.append(
                {
                    "model": model,
                    "limits": {n: v for n in LIMITS if (v := getattr(budget, n)) is not None},
                    "multiple": budget.multiple,
                    "exceeded": over,
                    "used": max(limit.of(kept) / limit.limit for limit in limits),
                    "whole": kept == structure.sizes,
                    "larger": could_be_larger(structure, budget, kept),
                    "seconds": round(took, 4),
                }
            )
        records += own
        dealt = [record for record in own if "error" not in record]
        free = [record for record in dealt if record["multiple"] == 1]
        rows.append([
            model, len(own), len(own) - len(dealt), sum(r["exceeded"] for r in dealt),
            f"{np.mean([r['used'] >= USED or r['whole'] for r in free]):.1%}",
            f"{np.mean([r['used'] >= USED or r['whole'] or not r['larger'] for r in free]):.1%}",
            f"{np.mean([r['used'] for r in free]):.1%}",
            f"{np.mean([r['used'] for r in dealt if r['multiple'] > 1]):.1%}",
            f"{1000 * np.median([r['seconds'] for r in dealt]):.1f}",
        ])  # fmt: skip
    columns = ["model", "budgets", "refused", "exceeded", "97 % used", "or no unit fits", "mean use",
               "mean use, multiples", "ms each"]  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    command = f"python -m benchmarks.budgets --budgets {budgets} --seed {seed} --out {out}"
    record = {"command": command, "table": [dict(zip(columns, row, strict=True)) for row in rows]}
    lines = ",\n".join(json.dumps(one) for one in records)
    out.write_text(f'{json.dumps(record)[:-1]}, "budgets": [\n{lines}\n]}}\n')
    show(f"{len(records):,} random budgets", columns, rows)


if __name__ == "__main__":
    main()
