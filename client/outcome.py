"""Outcome: what a device is told in the end of its adaptation, on one screen or as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from client.adapt import Adaptation
from client.latency_table import MeasuredTable
from common.budget import Budget, demands
from common.command_line import show_json
from common.exchange import Method
from common.tables import show

Facts = Mapping[str, Any]

SHOWN_NEIGHBOURS = 10
LEFT = "a mean of features and a count for each class, the budget, a mask, two accuracies"
STAYED = "images, labels, the names of files and classes, the network"


def facts_of(
    adaptation: Adaptation,
    method: Method,
    classes: int,
    bytes_up: Mapping[str, int],
    bytes_down: Mapping[str, int],
    budget: Budget | None = None,
    table: MeasuredTable | None = None,
) -> dict[str, Any]:
    """What there is to say, as it stands in the JSON; bytes are those of messages and their payloads.

    `budget` is what was asked for, where that is known; the network is held against it. `table`
    is what its milliseconds are of.
    """
    contribution, counts = adaptation.contribution, adaptation.counts
    structure = contribution.mask.structure
    limits = [] if budget is None else demands(structure, budget, classes)
    return {
        "request": contribution.request_id,
        "method": method,
        "budget": [
            {
                "unit": limit.unit,
                "limit": limit.limit,
                "used": limit.of(counts),
                "runtime": table.device.runtime if table is not None and limit.unit == "ms" else None,
            }
            for limit in limits
        ],
        "origin": adaptation.origin,
        "neighbours": len(adaptation.similarities),
        "similarities": [round(value, 4) for value in adaptation.similarities],
        "healed": adaptation.healed,
        "units": sum(counts),
        "of": structure.units,
        "parameters": adaptation.parameters,
        "weight_bytes": structure.weight_bytes(counts, classes),
        "flops": structure.flops(counts, classes),
        "accuracy": {str(k): v for k, v in sorted(adaptation.accuracies.items())},
        "kept": adaptation.kept,
        "held_out": adaptation.held_out,
        "seconds": {step: round(took, 2) for step, took in adaptation.seconds.items()},
        "bytes_up": dict(bytes_up),
        "bytes_down": dict(bytes_down),
    }


def tell(facts: Facts, caption: str, as_json: bool) -> None:
    """Print it: as JSON, or as one screen over the caption."""
    if as_json:
        show_json(facts)
        return
    accuracies = list(facts["accuracy"].items())
    (_, before), (iterations, after) = accuracies[0], accuracies[-1]
    rows = [
        ("budget", "\n".join(_used(limit) for limit in facts["budget"])),
        ("neighbours", _neighbours(facts)),
        (
            "network",
            f"{facts['units']:,} of {facts['of']:,} units, {facts['parameters']:,} parameters\n"
            f"{facts['weight_bytes']:,} bytes, {facts['flops']:,} operations for an image"
            + ("\nhealed by the server" if facts["healed"] else ""),
        ),
        ("accuracy", f"{before:.1%} before, {after:.1%} after {iterations} iterations"),
        ("kept", _kept(facts, int(iterations))),
        ("seconds", ", ".join(f"{step} {took:.1f}" for step, took in facts["seconds"].items())),
        ("bytes up", _bytes(facts["bytes_up"])),
        ("bytes down", _bytes(facts["bytes_down"])),
        ("left the device", LEFT),
        ("stayed here", STAYED),
    ]
    show(f"Request {facts['request']}", ["", ""], [row for row in rows if row[1]], caption)


def _used(limit: Mapping[str, Any]) -> str:
    used, most, unit = limit["used"], limit["limit"], limit["unit"]
    by = f", by {limit['runtime']}" if limit["runtime"] else ""
    amounts = (f"{used:.3g}", f"{most:.3g}") if unit == "ms" else (f"{used:,.0f}", f"{most:,.0f}")
    return f"{amounts[0]} of {amounts[1]} {unit} ({used / most:.1%}){by}"


def _kept(facts: Facts, iterations: int) -> str:
    """Which network was kept, and by what; nothing where there is only one."""
    kept, held_out = facts["kept"], facts["held_out"]
    if not iterations:
        return ""
    if not held_out and kept == iterations:
        return ""
    which = "as it was before tuning" if kept == 0 else f"after {kept} of {iterations} iterations"
    by = f", the best by {held_out:,} training images that were not tuned on" if held_out else ""
    return f"the network {which}{by}"


def _neighbours(facts: Facts) -> str:
    similarities = facts["similarities"]
    if not similarities:
        return "none: the library was empty, and the backbone's own importance chose"
    shown = ", ".join(f"{value:.2f}" for value in similarities[:SHOWN_NEIGHBOURS])
    more = len(similarities) - SHOWN_NEIGHBOURS
    found = f"{len(similarities)} {'task' if len(similarities) == 1 else 'tasks'}"
    similar = f"similar by {shown}" + (f" and {more} more" if more > 0 else "")
    if facts["origin"] == "importance":
        return f"{found} found, {similar}; the backbone's own importance chose"
    return f"{found} voted, {similar}"


def _bytes(parts: Mapping[str, int]) -> str:
    told = ", ".join(f"{what} {size:,}" for what, size in parts.items())
    return f"{sum(parts.values()):,}: {told}" if len(parts) > 1 else told
