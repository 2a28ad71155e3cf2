"""Bytes of one device on the wire: up (request and contribution), down (answer and sub-network).

    python -m benchmarks.wire --json benchmarks/results/wire.json

Random weights, as sizes do not depend on them; ten classes, a tenth of the units.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import numpy as np
import timm

from common.backbone import Backbone
from common.budget import Budget
from common.exchange import Assignment, Contribution, TaskDescription
from common.half_precision import in_half_precision
from common.importance import magnitude
from common.mask import Mask
from common.proto_codec import encode_assignment, encode_contribution, encode_task_description
from common.signature import signature_of
from common.subnetwork import SubNetwork
from common.tables import show
from server.budget import allot

CLASSES = 10
UP_LIMIT_BYTES = 20_000
DOWN_LIMIT_RATIO = 1.02


def measure(model: str, keep_ratio: float) -> dict[str, object]:
    """Sizes for one backbone."""
    backbone = Backbone.from_timm(model)
    structure = backbone.structure()
    weights = timm.create_model(model).state_dict()
    counts = allot(structure, Budget(keep_ratio=keep_ratio), CLASSES)
    mask = Mask.keep_top(structure, magnitude(weights, structure), counts)
    width = weights[backbone.classifier_tensors[0]].shape[1]
    rows = np.random.default_rng(0).normal(size=(CLASSES * 5, width))
    request = TaskDescription(
        "0" * 32,
        signature_of(rows, np.arange(len(rows)) % CLASSES, CLASSES, "0" * 64),
        Budget(keep_ratio=keep_ratio),
    )
    contribution = Contribution("0" * 32, mask, 0.5, 0.6, 50)
    subnetwork = SubNetwork.of(backbone, in_half_precision(weights), mask)
    message, payload = encode_assignment(
        Assignment("0" * 32, CLASSES, "smsp", "vote", mask, counts, 0, (), subnetwork)
    )
    kept = sum(t.numel() * t.element_size() for t in subnetwork.weights.values())
    return {
        "model": model,
        "keep_ratio": keep_ratio,
        "up_bytes": len(encode_task_description(request)) + len(encode_contribution(contribution)),
        "kept_weight_bytes": kept,
        "down_bytes": len(message) + len(payload),
        "down_ratio": (len(message) + len(payload)) / kept,
        "backbone_bytes": sum(t.numel() * t.element_size() for t in weights.values()),
    }


@click.command()
@click.option("--model", "models", multiple=True, default=["resnet18", "vit_tiny_patch16_224"])
@click.option("--keep-ratio", default=0.1, show_default=True)
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write the record here.")
def main(models: tuple[str, ...], keep_ratio: float, out: Path | None) -> None:
    """Measure and compare with the limits."""
    records = [measure(model, keep_ratio) for model in models]
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(records, indent=1) + "\n")
    show(
        f"Bytes of one device, {CLASSES} classes, {keep_ratio:.0%} of the units",
        ["model", "up", "limit", "down", "kept weights", "ratio", "limit", "whole backbone"],
        [
            [
                r["model"], f"{r['up_bytes']:,}", f"{UP_LIMIT_BYTES:,}", f"{r['down_bytes']:,}",
                f"{r['kept_weight_bytes']:,}", f"{r['down_ratio']:.4f}", DOWN_LIMIT_RATIO,
                f"{r['backbone_bytes']:,}",
            ]
            for r in records
        ],
    )  # fmt: skip
    over = [
        r["model"]
        for r in records
        if r["up_bytes"] > UP_LIMIT_BYTES or r["down_ratio"] > DOWN_LIMIT_RATIO
    ]
    raise SystemExit(f"over the limits: {', '.join(over)}" if over else 0)


if __name__ == "__main__":
    main()
