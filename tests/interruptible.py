"""Commands that Ctrl-C stops, also where the tests run in the background, with SIGINT ignored."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any


def start_interruptible(words: Sequence[object], **options: Any) -> subprocess.Popen[str]:
    """A command in a process group of its own, for which SIGINT is what it is in a terminal."""
    return subprocess.Popen(
        list(map(str, words)),
        text=True,
        start_new_session=True,
        # A shell ignores SIGINT for what it runs in the background, and processes inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )


def family_of(process: subprocess.Popen[str]) -> set[int]:
    """A process, those that it started, those that these started, and so on."""
    parents = {pid: parent for pid, (_, parent) in _states().items()}
    family, found = set[int](), {process.pid}
    while found:
        family |= found
        found = {pid for pid, parent in parents.items() if parent in family} - family
    return family


def alive(processes: Collection[int]) -> set[int]:
    """Those of these processes that have not ended."""
    states = _states()
    return {pid for pid in processes if pid in states and states[pid][0] not in "XZ"}


def seconds_until_ended(processes: Collection[int]) -> float:
    """How long it takes until all of them have ended. AssertionError after a minute."""
    began = time.monotonic()
    while left := alive(processes):
        assert time.monotonic() - began < 60, f"{left} of {processes} are left"
        time.sleep(0.05)
    return time.monotonic() - began


def wait_until(holds: Callable[[], bool], seconds: float, process: subprocess.Popen[str]) -> None:
    """Wait until this holds. AssertionError where the process ends before, or the time is over."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"not within {seconds} seconds"
        time.sleep(0.1)


def kill(processes: Collection[int]) -> None:
    """End what a test that failed has left."""
    for pid in alive(processes):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _states() -> dict[int, tuple[str, int]]:
    """Every process -> its state and its parent."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            found[int(stat.parent.name)] = (state, int(parent))
    return found
