"""A run's library as its records tell it: tasks and masks in library.jsonl, groups in structure.json.

The library itself is too large to publish, and seeded again it is another one, with another version of
torch or on another processor. So a run whose library is gone takes the masks that its records tell.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common.errors import InputError
from common.files import read_whole, write_whole
from simulations.tasks import TaskChoice

if TYPE_CHECKING:
    from server.library import Entry

LIBRARY, STRUCTURE = "library.jsonl", "structure.json"


@dataclass(frozen=True)
class LibraryMasks:
    """A library's tasks and masks: `kept` is bool (tasks, units), the units of `groups` in order.

    `accuracies` is float64 (tasks, 2): before the first iteration and in the end.
    """

    tasks: tuple[TaskChoice, ...]
    groups: tuple[tuple[str, int], ...]
    kept: np.ndarray
    accuracies: np.ndarray


def write_library(directory: Path, entries: Iterable[tuple[TaskChoice, Entry]]) -> None:
    """Write a run's library.jsonl."""
    lines = [
        json.dumps(
            {
                "name": choice.name,
                "classes": choice.classes,
                "domain": choice.domain,
                "mask": base64.b64encode(entry.mask.pack()).decode(),
                "before": round(entry.accuracy_before, 4),
                "after": round(entry.accuracy_after, 4),
            }
        )
        for choice, entry in entries
    ]
    write_whole(directory / LIBRARY, "".join(f"{line}\n" for line in lines).encode())


def read_library(directory: Path) -> LibraryMasks:
    """A run's library.jsonl and structure.json. InputError where they are missing or damaged."""
    file = directory / STRUCTURE
    try:
        groups = tuple((str(name), int(n)) for name, n in json.loads(bytes(read_whole(file)))["groups"])
        file = directory / LIBRARY
        lines = [json.loads(line) for line in bytes(read_whole(file)).splitlines() if line.strip()]
        tasks = tuple(TaskChoice(d["name"], tuple(d["classes"]), d["domain"]) for d in lines)
        accuracies = [(float(d["before"]), float(d["after"])) for d in lines]
        masks = [base64.b64decode(d["mask"], validate=True) for d in lines]
    except (KeyError, TypeError, ValueError, AttributeError, binascii.Error) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{file} is damaged ({error!r}); remove it, and the run writes it again"
        ) from error
    units = sum(n for _, n in groups)
    wrong = [task.name for task, mask in zip(tasks, masks, strict=True) if len(mask) != (units + 7) // 8]
    if wrong:
        raise InputError(
            f"{file} has a mask of another size for {wrong[0]}; {units} units of structure.json need "
            f"{(units + 7) // 8} bytes: keep both files of one run together"
        )
    bits = [np.unpackbits(np.frombuffer(mask, dtype=np.uint8), count=units) for mask in masks]
    kept = np.array(bits, dtype=bool).reshape(len(tasks), units)
    return LibraryMasks(tasks, groups, kept, np.array(accuracies).reshape(len(tasks), 2))
