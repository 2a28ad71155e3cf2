"""Budgets as messages of protos/maskvote.proto, and as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict

from common.budget import MAX_POINTS, Budget, LatencyTable
from common.errors import InputError
from protos import maskvote_pb2 as pb

OPTIONAL = ("keep_ratio", "parameters", "flops", "weight_bytes", "activation_bytes", "latency_ms")
DIGEST_BYTES = 32


def budget_message(budget: Budget) -> pb.Budget:
    """The message of a budget."""
    message = pb.Budget(
        headroom=budget.headroom,
        wait_seconds=budget.wait_seconds,
        multiple=budget.multiple if budget.multiple > 1 else 0,
        **{name: limit for name in OPTIONAL if (limit := getattr(budget, name)) is not None},
    )
    if budget.latency is not None:
        flops, milliseconds = zip(*budget.latency.points, strict=True)
        structure = bytes.fromhex(budget.latency.structure)
        message.latency.CopyFrom(
            pb.LatencyTable(structure=structure, flops=flops, milliseconds=milliseconds)
        )
    return message


def budget_in(message: pb.Budget) -> Budget:
    """The budget in a message. BudgetError if it is none."""
    given = {name: getattr(message, name) for name in OPTIONAL if message.HasField(name)}
    return Budget(
        headroom=message.headroom,
        wait_seconds=message.wait_seconds,
        latency=_table_in(message.latency) if message.HasField("latency") else None,
        multiple=max(1, message.multiple),
        **given,
    )


def _table_in(message: pb.LatencyTable) -> LatencyTable:
    if len(message.structure) != DIGEST_BYTES or len(message.flops) != len(message.milliseconds):
        raise InputError(
            f"a latency table for a structure of {len(message.structure)} bytes, with "
            f"{len(message.flops)} sizes and {len(message.milliseconds)} times; needed are "
            f"{DIGEST_BYTES} bytes, and as many times as sizes, at most {MAX_POINTS}"
        )
    points = tuple(zip(message.flops, message.milliseconds, strict=True))
    return LatencyTable(message.structure.hex(), points)


def budget_json(budget: Budget) -> str:
    """A budget as JSON."""
    return json.dumps(asdict(budget))


def budget_of_json(text: str) -> Budget:
    """The budget of such a text. BudgetError if it is none."""
    values = json.loads(text)
    if (table := values.get("latency")) is not None:
        points = tuple((int(flops), float(time)) for flops, time in table["points"])
        values["latency"] = LatencyTable(table["structure"], points)
    return Budget(**values)
