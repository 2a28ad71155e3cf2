"""Settings in words, for messages to those who gave them: "keep ratio 0.3", "no keep ratio"."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

NAMES: Mapping[str, str] = {
    "latency": "latency table",
    "latency_ms": "latency in ms",
    "model": "backbone",
    "public": "public images",
    "tasks_a_seed": "tasks a seed",
    "wait_seconds": "wait in seconds",
}
"""Settings that are called otherwise than by the words of their name."""


def changed_words(name: str, before: object, now: object) -> str:
    """That a setting was one thing and is now another: "keep ratio 0.3, now it is 0.1".

    None, "", "none" and an empty list or mapping are no value: "no keep ratio, now it is 0.1".
    """
    words = NAMES.get(name, name.replace("_", " "))
    was = f"{words} {_shown(before)}" if _is_given(before) else f"no {words}"
    return f"{was}, now {f'it is {_shown(now)}' if _is_given(now) else 'there is none'}"


def _is_given(value: object) -> bool:
    return value not in (None, "none") and not (isinstance(value, Collection) and not value)


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={item}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
