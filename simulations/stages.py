"""Stages: a progress bar for each part of a long run, as it comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import TaskID

from common.progress import progress

Watch = Callable[[str, int, int | None], None]
"""Called with a stage's name, what is done of it, and what there is to do; None where that is unknown."""


@contextmanager
def stages() -> Iterator[Watch]:
    """What to call when a stage begins, and at every step. One of unknown length ends with the next."""
    with progress() as bars:
        known: dict[str, TaskID] = {}

        def watch(stage: str, done: int, total: int | None) -> None:
            if stage not in known:
                for bar in bars.tasks:
                    if bar.total is None:
                        bars.update(bar.id, completed=1, total=1)
                known[stage] = bars.add_task(stage.capitalize(), total=total)
            bars.update(known[stage], completed=done, total=total)

        yield watch
