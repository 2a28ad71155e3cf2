"""This device's processor: the name that the system has for the board or for it, and how it counts."""

from __future__ import annotations

import platform
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
BOARD = Path("/proc/device-tree/model")
"""What the firmware calls the board, where it describes one: on Arm, RISC-V and others, not on x86."""
NAMES = ("model name", "Model Name", "cpu model", "Hardware", "Model")
"""Lines that name processor or board, the likeliest first; x86 has another, `model`, with a number."""
CORE = ("CPU implementer", "CPU part", "CPU variant", "CPU revision")
"""Lines that every Arm core has; on big.LITTLE not all cores are alike."""


def processor() -> str:
    """The board's name, or the processor's, as the system has it; "" where it has none.

    The board's goes first: 32-bit Arm names the kind of core beside it, 64-bit Arm has mere numbers.
    """
    lines = [
        (key.strip(), value.strip())
        for key, _, value in (line.partition(":") for line in _read(CPU_INFO).splitlines())
    ]
    named = dict(lines)
    names = (_read(BOARD), *(named.get(name, "") for name in NAMES), _cores(lines), platform.processor())
    return next((name for name in names if name), "")


def counts_in_32_bits() -> bool:
    """Whether products of 8 bits are added up in 32 here: Arm does, x86 since VNNI; else in 16."""
    flags = [line for line in _read(CPU_INFO).splitlines() if line.startswith("flags")]
    return not flags or "vnni" in flags[0]


def _cores(lines: list[tuple[str, str]]) -> str:
    """The kinds of Arm cores by their numbers, as `0x41 0xd08 0x0 3`; "" where there are none."""
    numbers = [[value for key, value in lines if key == word] for word in CORE]
    return ", ".join(sorted({" ".join(kind) for kind in zip(*numbers, strict=False)}))


def _read(path: Path) -> str:
    """A text of the system's, which may end in a zero byte; "" where there is none."""
    try:
        return path.read_text(errors="replace").strip("\0\n ")
    except OSError:
        return ""
