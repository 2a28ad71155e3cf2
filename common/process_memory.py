"""Process memory: what this process holds of the machine's memory, and has held at most (Linux)."""

from __future__ import annotations

import ctypes
from pathlib import Path

from common.errors import InputError

PROCESS = Path("/proc/self")
FORGET_PEAK = "5"
"""Written to clear_refs it makes the peak what is resident now; see proc(5)."""
MEGABYTE = 1_000_000
RETURNED_BYTES = 2**18
"""Blocks from this size on are returned at once by `keep_little`."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of mallopt(3)."""


def resident_bytes() -> int:
    """Bytes in memory now, pages of libraries' files among them. InputError where that cannot be told."""
    return _status("VmRSS")


def peak_bytes() -> int:
    """Most bytes that were in memory at once, since the process began or `forget_peak`."""
    return _status("VmHWM")


def forget_peak() -> None:
    """Let the peak begin anew from what is resident. InputError where the system does not allow it."""
    try:
        (PROCESS / "clear_refs").write_text(FORGET_PEAK)
    except OSError as error:
        raise InputError(
            f"{PROCESS}/clear_refs cannot be written ({error.strerror}), so that no step's memory can be "
            "measured here; leave the memory limit out, and give the micro-batch yourself"
        ) from error


def give_back() -> None:
    """Return memory to the system that is free in this process: glibc keeps it for what may come."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def keep_little() -> None:
    """Let glibc return memory as soon as it is freed, from now on in this process.

    Left alone it keeps what large tensors leave, in pieces that the next ones may not fit into. To have
    each page cleared by the system anew costs an eighth of a training step's time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            mallopt(parameter, RETURNED_BYTES)


def _status(name: str) -> int:
    try:
        lines = (PROCESS / "status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])
    except (OSError, StopIteration) as error:
        raise InputError(
            f"{PROCESS}/status does not tell {name}, so that memory cannot be limited here; leave the "
            "memory limit out, and give the micro-batch yourself"
        ) from error
