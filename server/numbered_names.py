"""Names that differ only in numbers, as one: blocks.{0..11}.mlp.fc1.weight:0."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

NUMBER = re.compile(r"(?<!\d)(0|[1-9]\d*)(?!\d)")


def braced(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Patterns, each with the names that it stands for: those it expands to, as a shell's braces do.

    Every name is in one pattern, which come in the order of their first names. A tensor's dimension,
    after the colon, is no such number.
    """
    patterns: dict[tuple, list[str]] = {}
    for name in dict.fromkeys(names):
        stem, colon, dim = name.partition(":")
        words = NUMBER.split(stem)
        numbers = tuple(frozenset([int(number)]) for number in words[1::2])
        patterns[(*words[::2], colon + dim), numbers] = [name]
    for slot in range(max((len(numbers) for _, numbers in patterns), default=0)):
        patterns = _merged(patterns, slot)
    return {_text(*pattern): tuple(members) for pattern, members in patterns.items()}


def _merged(patterns: Mapping[tuple, Sequence[str]], slot: int) -> dict[tuple, list[str]]:
    """Patterns with those as one that differ in one number: so many places from the last."""
    alike: dict[tuple, list[tuple]] = {}
    for words, numbers in patterns:
        place = len(numbers) - 1 - slot
        rest = numbers if place < 0 else (*numbers[:place], *numbers[place + 1 :])
        alike.setdefault((words, rest), []).append((words, numbers))
    merged: dict[tuple, list[str]] = {}
    for same in alike.values():
        words, numbers = same[0]
        together = tuple(frozenset().union(*values) for values in zip(*(n for _, n in same), strict=True))
        merged[words, together] = [name for pattern in same for name in patterns[pattern]]
    return merged


def _text(words: Sequence[str], numbers: Sequence[frozenset[int]]) -> str:
    text = words[0]
    for values, word in zip(numbers, words[1:-1], strict=True):
        text += _braces(sorted(values)) + word
    return text + words[-1]


def _braces(values: Sequence[int]) -> str:
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    parts = [
        text for run in runs for text in ([_run(run[0], run[-1])] if len(run) > 2 else map(str, run))
    ]
    if len(values) == 1 or len(parts) == 1:
        return parts[0]
    return "{" + ",".join(parts) + "}"


def _run(first: int, last: int) -> str:
    return "{" + f"{first}..{last}" + "}"
