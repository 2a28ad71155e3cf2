"""maskvote-sim plot: a run of a fleet as tables and curves, from its record."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from common.errors import InputError
from common.files import read_whole
from common.option_types import INPUT_FILE, OUTPUT_FILE
from common.tables import show


@click.command()
@click.argument("record", type=INPUT_FILE)
@click.option("--out", type=OUTPUT_FILE, help="The PNG; default: beside the record.")
def plot(record: Path, out: Path | None) -> None:
    """Draw the curves of a run from its RECORD, and print its tables.

    Example: maskvote-sim plot runs/demo-20260101-120000/record.json
    """
    try:
        data = json.loads(bytes(read_whole(record)))
        show_record(data)

        from simulations.plots import curves

        target = out or record.with_name("curves.png")
        curves(data, target)
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise InputError(f"{record} is no record of a run ({error!r}); give a record.json") from error
    click.echo(str(target))


def show_record(record: Mapping[str, Any]) -> None:
    """A run as two tables: what every device got, and what it would have got instead."""
    devices = [device for device in record["devices"] if device["error"] is None]
    if not devices:
        return
    way = next(iter(devices[0]["accuracies"]))
    points = list(devices[0]["accuracies"][way])
    show(
        f"{record['title']}: {way}, keeping {record['run']['keep_ratio']:.0%} of the units",
        ["device", "neighbours", "nearest", "mask units", "parameters", "kB down", "kB up",
         *(f"at {k}" for k in points), "seconds"],
        [
            [
                device["name"],
                len(device["neighbours"]),
                f"{device['neighbours'][0]['similarity']:.2f}" if device["neighbours"] else "-",
                f"{sum(device['counts']):,}",
                f"{device['held_parameters']:,}",
                f"{device['bytes_down'] / 1000:,.1f}",
                f"{device['bytes_up'] / 1000:,.1f}",
                *(_mean([device], way, k) for k in points),
                f"{device['seconds']['fit'] + device['seconds']['tune']:.1f}",
            ]
            for device in devices
        ],
        caption="nearest: similarity of the nearest neighbour. mask units: of what it gives back.\n"
        "at K: accuracy on images kept apart, after K iterations. seconds: fitting and tuning.\n"
        f"The backbone has {record['units']:,} units and {record['backbone_parameters']:,} parameters.",
    )  # fmt: skip
    show(
        f"Mean accuracy of the {len(devices)} devices, and what they would have got instead",
        ["way", *(f"at {k}" for k in points)],
        [[name, *(_mean(devices, name, k) for k in points)] for name in devices[0]["accuracies"]],
        caption="All at the same size, iterations and images. random, L1: units drawn by lot, or by the\n"
        "size of their weights. scratch: the L1 mask's network from random weights.",
    )


def _mean(devices: Sequence[Mapping[str, Any]], way: str, point: str) -> str:
    """Mean accuracy of these devices at a point; "" where the way has none: a linear probe has one."""
    found = [device["accuracies"].get(way, {}).get(point) for device in devices]
    return "" if None in found else f"{np.mean(found):.1%}"
