"""Stages: a progress bar for each part of a long run, as it comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from common.command_line import progress

Watch = Callable[[str, int, int], None]
"""Called with a stage's name, what is done of it, and what there is to do."""


@contextmanager
def stages(quiet: bool) -> Iterator[Watch]:
    """What to call at every step; where nobody looks, each stage is a line on stderr, unless `quiet`."""
    with progress() as bars:
        known: dict[str, Any] = {}

        def watch(stage: str, done: int, total: int) -> None:
            if stage not in known:
                known[stage] = bars.add_task(stage.capitalize(), total=total)
                if bars.disable and not quiet:
                    click.echo(f"{stage} ...", err=True)
            bars.update(known[stage], completed=done, total=total)

        yield watch
