"""Records of a run: one JSON object a line for each cell, appended in one write.

A cell is a task of one seed, and a way. What it came to stays as it was measured, and means, spreads and
tests are computed when tables and figures are made.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from simulations.tasks import TaskChoice
from simulations.way import Way


@dataclass(frozen=True)
class Cell:
    """What is measured once: a way, on a task of one seed."""

    seed: int
    task: TaskChoice
    way: Way

    @property
    def key(self) -> str:
        """What tells it from all other cells of a run."""
        return json.dumps([self.seed, self.task.name, self.way.to_json()], sort_keys=True)


@dataclass(frozen=True)
class Record:
    """What a cell came to.

    `values` are measurements by name: accuracies in [0, 1] as "at 0", "at 25", ... iterations and
    "after" the last; "recall" of the truly nearest tasks among the neighbours, in [0, 1]. `facts` say
    what was measured (parameters, the mask in base64, similarities), `seconds` what it took, by step.
    A cell that failed has an `error` and no values.
    """

    seed: int
    task: str
    way: Way
    values: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None
    commit: str = ""
    """Of the code that measured it (see `simulations.provenance`); "" is not known."""

    @property
    def key(self) -> str:
        """That of its cell."""
        return json.dumps([self.seed, self.task, self.way.to_json()], sort_keys=True)

    def to_line(self) -> str:
        """One line of JSON, with its end."""
        return json.dumps(asdict(self) | {"way": self.way.to_json()}) + "\n"


def read_records(path: Path) -> list[Record]:
    """The records in a file, the last of each cell; none where there is no file.

    A line that was not finished, as the machine went down, is left out.
    """
    found: dict[str, Record] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            data = json.loads(line)
        except json.JSONDecodeError:
            continue
        record = Record(**{**data, "way": Way.from_json(data["way"])})
        found.pop(record.key, None)
        found[record.key] = record
    return list(found.values())


def append(path: Path, record: Record) -> None:
    """Add one record in one write, on a line of its own even where the line before has no end."""
    unfinished = path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")
    with path.open("a") as file:
        file.write("\n" * unfinished + record.to_line())


def pending(cells: Iterable[Cell], records: Iterable[Record]) -> list[Cell]:
    """The cells without a record, each once; those that failed before are tried again."""
    done = {record.key for record in records if record.error is None}
    wanted = {cell.key: cell for cell in cells}
    return [cell for key, cell in wanted.items() if key not in done]
