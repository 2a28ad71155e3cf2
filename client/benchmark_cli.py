"""maskvote-client benchmark: how long this device takes, so that it can ask for milliseconds."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import click

from client.latency_table import RUNTIME_NAMES, MeasuredTable, RuntimeName, write_latency_table
from client.taking_part import offer_of
from client.task_options import (
    OF_SERVER,
    OFFER,
    Server,
    Way,
    check_way,
    through_server,
)
from common.command_line import settings_option, show_json
from common.envelope import unseal
from common.option_types import JSON, OUTPUT_FILE
from common.progress import progress
from common.proto_codec import decode_offer
from common.signature import MAX_CLASSES
from common.tables import show
from common.threads_option import THREADS, compute_with

SERVER = Way("through a server", ("address",), ("state", *OF_SERVER))
FILES = Way("by files", ("offer_file",))

RESTLESS = 1.3
"""The median of a size's rounds is more times their least only where other work ran beside them."""


@click.command("benchmark")
@OFFER
@through_server
@settings_option(
    "--classes",
    type=click.IntRange(2, MAX_CLASSES),
    default=10,
    help="Classes that the networks tell apart.",
)
@settings_option(
    "--runtime",
    type=click.Choice(RUNTIME_NAMES),
    default="torch",
    help="What runs the networks; onnx: what export --format onnx writes, by onnxruntime.",
)
@THREADS
@click.option("--out", required=True, type=OUTPUT_FILE, help="Write the table to this file.")
@JSON
def benchmark_command(
    offer_file: Path | None,
    server: Server | None,
    classes: int,
    runtime: RuntimeName,
    threads: int,
    out: Path,
    as_json: bool,
) -> None:
    """Measure how long this device takes for an image, by sub-networks of many sizes.

    adapt takes the table with --latency-table, and then --latency-ms as a budget. It holds for the
    processor, the threads and the runtime that it was measured with: choose the one that will run the
    network. --runtime onnx needs: pip install "maskvote[onnx]".

    Example: maskvote-client benchmark --server birds.example:7070 --threads 4 --out this-device.json
    """
    check_way(SERVER, FILES)
    if server is not None:
        server.check()
        offer = offer_of(server)
    else:
        assert offer_file is not None
        offer = decode_offer(*unseal(offer_file))
    from client.benchmark import RUNTIMES, benchmark

    compute_with(threads)
    with progress() as bars:
        bar = bars.add_task("Measuring", total=None)
        table = benchmark(
            offer.backbone,
            offer.structure,
            classes,
            RUNTIMES[runtime],
            lambda done, total: bars.update(bar, completed=done, total=total),
        )
    write_latency_table(out, table)
    points = table.latency.points
    if as_json:
        show_json({
            "written": str(out), "device": vars(table.device), "multiple": table.multiple,
            "structure": table.latency.structure, "points": points, "rounds": table.rounds,
        })  # fmt: skip
        return
    whole = offer.structure.flops(classes=classes)
    show(
        f"One image on {table.device}",
        ["operations", "of the backbone's", "ms", "measured, ms"],
        [
            [
                f"{flops:,}",
                f"{flops / whole:.1%}",
                f"{time:.3g}",
                f"{min(rounds):.3g} to {max(rounds):.3g}",
            ]
            for (flops, time), rounds in zip(points, table.rounds, strict=True)
        ],
        f"Widths are best in multiples of {table.multiple}. Written to {out}." + _unrest(table),
    )


def _unrest(table: MeasuredTable) -> str:
    """What to do where the rounds differ much."""
    factor = max(median(rounds) / min(rounds) for rounds in table.rounds)
    if factor <= RESTLESS:
        return ""
    return (
        f"\nOther work slowed this device down, up to {factor:.1f} times in half of the rounds: measure "
        "again when it rests."
    )
