"""The options of a budget: limits on the command line, as people say them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import click

from client.latency_table import MeasuredTable
from common.budget import Budget
from common.command_line import settings_option
from common.option_types import INPUT_FILE, SHARE

LIMITS = (
    "keep_ratio",
    "parameters",
    "flops",
    "weight_bytes",
    "activation_bytes",
    "latency_ms",
    "latency_table",
    "multiple",
    "headroom",
    "wait",
)
"""Names of the parameters of `budget_options`."""
PREFIXES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}


class Count(click.ParamType):
    """A number of things: 1500000, 1.5M, 800k or 2G."""

    name = "count"

    def convert(self, value: Any, parameter: Any, context: Any) -> int:
        """The number. Fails for what is none; whether it is any use is for the budget to say."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(-?\d+|\d+(?:\.\d+)?(?=[kMG]))([kMG]?)", value.strip())
        if found is None:
            self.fail(f"{value!r} is no number; give 1500000, 1.5M, 800k or 2G", parameter, context)
        number, prefix = found.groups()
        return int(number) if not prefix else round(float(number) * PREFIXES[prefix])


def budget_options(command: Callable) -> Callable:
    """Give a command the options of a budget, under the names in LIMITS."""
    for option in reversed(
        (
            click.option("--keep-ratio", type=SHARE, help="Share of the backbone's units: 0.1 or 10%."),
            click.option("--parameters", type=Count(), help="Parameters that you can afford: 1.5M."),
            click.option("--flops", type=Count(), help="Floating-point operations per image: 50M."),
            click.option("--weight-bytes", type=Count(), help="Bytes of the network's tensors: 5M."),
            click.option(
                "--activation-bytes", type=Count(), help="Bytes of activations for one image: 500k."
            ),
            click.option("--latency-ms", type=float, help="Milliseconds for one image, by the table."),
            click.option(
                "--latency-table",
                type=INPUT_FILE,
                help="What `maskvote-client benchmark` wrote on this device.",
            ),
            click.option(
                "--multiple",
                type=int,
                help="Make widths multiples of this: 16 for most CPUs.  [default: the table's, or 1]",
            ),
            settings_option("--headroom", default=1.0, help="Times the budget that fit while adapting."),
            settings_option(
                "--wait", default=0.0, help="Seconds to wait for a network healed for this task; 0: none."
            ),
        )
    ):
        command = option(command)
    return command


def budget_of(given: Mapping[str, Any], table: MeasuredTable | None) -> Budget:
    """The budget that these options ask for, by the table that one of them names. Errors as of Budget."""
    limits = {name: given[name] for name in LIMITS if name not in ("latency_table", "wait", "multiple")}
    multiple = given["multiple"]
    if multiple is None:
        multiple = 1 if table is None else table.multiple
    return Budget(
        **limits,
        wait_seconds=given["wait"],
        latency=None if table is None or given["latency_ms"] is None else table.latency,
        multiple=multiple,
    )
