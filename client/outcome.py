"""Outcome: what a device is told in the end of its adaptation, as words or as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from client.adapt import Adaptation
from common.command_line import show, show_json
from common.exchange import Method

Facts = Mapping[str, Any]


def facts_of(adaptation: Adaptation, method: Method, bytes_up: int) -> dict[str, Any]:
    """What there is to say, as it stands in the JSON; bytes are those of messages and their payloads."""
    contribution = adaptation.contribution
    return {
        "request": contribution.request_id,
        "method": method,
        "origin": adaptation.origin,
        "neighbours": adaptation.neighbours,
        "healed": adaptation.healed,
        "units": adaptation.units,
        "of": contribution.mask.structure.units,
        "parameters": adaptation.parameters,
        "accuracy": {str(k): v for k, v in sorted(adaptation.accuracies.items())},
        "seconds": {step: round(took, 2) for step, took in adaptation.seconds.items()},
        "bytes_up": bytes_up,
    }


def tell(facts: Facts, caption: str, as_json: bool) -> None:
    """Print it: as JSON, or as a table over the caption."""
    if as_json:
        show_json(facts)
        return
    accuracies = list(facts["accuracy"].values())
    row = {
        "neighbours": facts["neighbours"],
        "healed": "yes" if facts["healed"] else "no",
        "units": f"{facts['units']:,} of {facts['of']:,}",
        "parameters": f"{facts['parameters']:,}",
        "accuracy before": f"{accuracies[0]:.1%}",
        "after": f"{accuracies[-1]:.1%}",
        "seconds": f"{sum(facts['seconds'].values()):.1f}",
        "bytes up": f"{facts['bytes_up']:,}",
    }
    if "bytes_down" in facts:
        row["bytes down"] = f"{facts['bytes_down']:,}"
    show(f"Request {facts['request']}", list(row), [list(row.values())], caption)
