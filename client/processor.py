"""This device's processor, by the name that the system has for it."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
PROCESSOR_LINES = ("model name", "hardware", "cpu model")


def processor() -> str:
    """The processor's name as the system has it; "" where it has none."""
    try:
        lines = CPU_INFO.read_text(errors="replace").splitlines()
    except OSError:
        return platform.processor()
    named: Mapping[str, str] = {
        key.strip().lower(): value.strip() for key, _, value in (line.partition(":") for line in lines)
    }
    return next((named[key] for key in PROCESSOR_LINES if named.get(key)), platform.processor())
