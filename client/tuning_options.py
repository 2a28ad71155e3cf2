"""The options of commands that fine-tune: how, and what that may take of the device."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from common.command_line import settings_option
from common.process_memory import MEGABYTE
from common.tuning_settings import PRECISIONS, TUNED, FineTuneSettings, Precision


def tuning(command: Callable) -> Callable:
    """Give a command the options of fine-tuning; it gets them as one: `settings`."""

    @settings_option("--iterations", default=FineTuneSettings.iterations)
    @settings_option("--learning-rate", default=FineTuneSettings.learning_rate)
    @settings_option(
        "--tune",
        "tuned",
        type=click.Choice(TUNED),
        default=FineTuneSettings.tuned,
        help="All parameters, or the head alone: the classifier, and the norms' scales and shifts.",
    )
    @settings_option(
        "--micro-batch",
        default=FineTuneSettings.micro_batch,
        help="Images in memory at a time, of a batch; 0: all of it.",
    )
    @settings_option(
        "--precision",
        type=click.Choice(PRECISIONS),
        default=FineTuneSettings.precision,
        help="bf16 saves time on CPUs that have it.",
    )
    @click.option("--max-seconds", type=float, help="Fit, tune and judge within so many seconds.")
    @click.option(
        "--max-memory",
        type=float,
        help="Megabytes that this process may hold: fewer images are in memory at once.",
    )
    @functools.wraps(command)
    def with_settings(
        *arguments: Any,
        iterations: int,
        learning_rate: float,
        tuned: Any,
        micro_batch: int,
        precision: Precision,
        max_seconds: float | None,
        max_memory: float | None,
        **options: Any,
    ) -> Any:
        settings = FineTuneSettings(
            iterations=iterations,
            learning_rate=learning_rate,
            micro_batch=micro_batch,
            tuned=tuned,
            precision=precision,
            max_seconds=max_seconds,
            max_memory=None if max_memory is None else max_memory * MEGABYTE,
        )
        return command(*arguments, settings=settings, **options)

    return with_settings
