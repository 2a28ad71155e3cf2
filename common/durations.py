"""Durations in words."""

from __future__ import annotations

UNITS = (("year", 31_557_600), ("day", 86_400), ("hour", 3600), ("minute", 60))


def in_words(seconds: float) -> str:
    """A duration in its largest unit, rounded down: 90 -> 1 minute."""
    for unit, length in UNITS:
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'' if count == 1 else 's'}"
    return f"{seconds:.0f} seconds"
