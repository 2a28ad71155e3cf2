"""Progress of long work, on stderr: bars in a terminal, and elsewhere a plain line every few seconds."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

SECONDS = 5.0
"""From one line to the next."""
LONGER = 0.01
"""Share of the time so far that passes until the next line, so that work of days does not fill a log."""
SPEED_SECONDS = 600.0
"""What was done in this time tells how long the rest takes: a step may take minutes."""


def progress() -> Progress:
    """Rich's progress, to be entered: bars where stderr is a terminal, else lines of what is going on.

    A line says what is done, how much of how much, and how long the rest takes; work that ends before
    the first one is due says nothing. Threads may update it.
    """
    # The stream as it is now: what packages print meanwhile may be redirected to nowhere.
    console = Console(file=sys.stderr)
    if not console.is_terminal:
        return Lines(console)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
        speed_estimate_period=SPEED_SECONDS,
    )


@contextmanager
def working(what: str) -> Iterator[None]:
    """Tell that this goes on, where it is unknown how much there is of it."""
    with progress() as bars:
        bars.add_task(what, total=None)
        yield


class Lines(Progress):
    """Progress as plain lines, from a thread of its own: also of a step that takes long by itself."""

    def __init__(self, console: Console) -> None:
        super().__init__(console=console, disable=True)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._tell_now_and_then, daemon=True)
        self._first: dict[TaskID, tuple[float, float]] = {}
        """Tasks that were told -> when for the first time, and what was done of them then."""

    def start(self) -> None:
        """Begin to write lines."""
        self._thread.start()

    def stop(self) -> None:
        """Write no more, but what is finished of that which was told before."""
        self._stopped.set()
        self._thread.join()
        self._write(self._finished())

    def _tell_now_and_then(self) -> None:
        began = time.monotonic()
        while not self._stopped.wait(max(SECONDS, LONGER * (time.monotonic() - began))):
            unfinished = [task for task in self.tasks if not task.finished]
            self._write([*self._finished(), "; ".join(map(self._described, unfinished))])

    def _finished(self) -> list[str]:
        finished = [task for task in self.tasks if task.finished and task.id in self._first]
        for task in finished:
            del self._first[task.id]
        return [described(task) for task in finished]

    def _described(self, task: Task) -> str:
        """A task in words, by its speed since it was told first: what was done before took no time."""
        at, done = self._first.setdefault(task.id, (time.monotonic(), task.completed))
        more = task.completed - done
        return described(task, (time.monotonic() - at) / more if more > 0 else None)

    def _write(self, lines: list[str]) -> None:
        for line in filter(None, lines):
            with suppress(OSError, ValueError):  # nobody reads it: the work goes on
                self.console.print(line, markup=False, highlight=False, soft_wrap=True)


def described(task: Task, seconds_each: float | None = None) -> str:
    """A task in words: "Seeding: 3 of 12, 40 s left", or how long it has taken where that is unknown."""
    took = duration(task.elapsed or 0.0)
    if task.total is None:
        return f"{task.description}: {took} so far"
    if task.finished and task.total == 1:
        return f"{task.description}: done in {duration(task.finished_time or 0.0)}"
    done = f"{task.description}: {task.completed:,.0f} of {task.total:,.0f}"
    if task.finished:
        return f"{done}, done in {duration(task.finished_time or 0.0)}"
    if seconds_each is None:
        return f"{done}, {took} so far"
    return f"{done}, {duration(seconds_each * (task.total - task.completed))} left"


def duration(seconds: float) -> str:
    """A time in words: "45 s", "12 min", "3.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"
