"""The table of a comparison, from its records: mean accuracy, spread over tasks, paired differences.

    python -m benchmarks.accuracy_table benchmarks/results/accuracy [--markdown]

A row counts the tasks on which its way was run; a difference is that to SMSP on the same tasks and
seeds, with an interval of two standard errors on each side.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import click
import numpy as np

from common.command_line import show
from simulations.comparison import recorded

REFERENCE = "SMSP"

Cells = dict[tuple[int, str], dict[str, Any]]
"""By seed and task: the record of one way."""


def table(path: Path) -> tuple[list[str], list[list[str]]]:
    """Columns, and rows with the best way first."""
    ways: dict[str, Cells] = defaultdict(dict)
    for record in recorded(path / "cells.jsonl"):
        ways[record["way"]][record["seed"], record["task"]] = record
    points = sorted(next(iter(ways[REFERENCE].values()))["accuracies"], key=int)
    rows = sorted(
        (_row(way, cells, ways[REFERENCE], points) for way, cells in ways.items()),
        key=lambda row: -row[0],
    )
    columns = [
        "way", "tasks", "iterations", *(f"at {point}" for point in points[:-1]), "in the end",
        "spread", f"minus {REFERENCE}", "M parameters", "seconds",
    ]  # fmt: skip
    return columns, [row for _, row in rows]


def _row(way: str, cells: Cells, reference: Cells, points: list[str]) -> tuple[float, list[str]]:
    end = np.array([_end(cell) for cell in cells.values()])
    against = np.array(
        [_end(cell) - _end(reference[key]) for key, cell in cells.items() if key in reference]
    )
    iterations = max(map(int, next(iter(cells.values()))["accuracies"]))
    # A longer run is on its way at these points, with a network of another size.
    comparable = iterations == int(points[-1])
    early = [
        f"{100 * np.mean([cell['accuracies'][point] for cell in cells.values()]):.1f}"
        if comparable
        else ""
        for point in points[:-1]
    ]
    error = 2 * against.std(ddof=1) / np.sqrt(len(against)) if len(against) > 1 else np.nan
    seconds = np.mean([sum(cell["seconds"][step] for step in ("fit", "tune")) for cell in cells.values()])
    return float(against.mean()), [
        way,
        str(len(cells)),
        str(iterations),
        *early,
        f"{100 * end.mean():.1f}",
        f"{100 * end.std(ddof=1):.1f}" if len(end) > 1 else "",
        "" if way == REFERENCE else f"{100 * against.mean():+.1f} ± {100 * error:.1f}",
        f"{next(iter(cells.values()))['parameters'] / 1e6:.2f}",
        f"{seconds:.0f}",
    ]


def _end(cell: dict[str, Any]) -> float:
    return cell["accuracies"][max(cell["accuracies"], key=int)]


@click.command()
@click.argument("path", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--markdown", is_flag=True)
def main(path: Path, markdown: bool) -> None:
    """Print the table of the records in PATH."""
    columns, rows = table(path)
    if markdown:
        click.echo(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
        for row in rows:
            click.echo(f"| {' | '.join(row)} |")
    else:
        show("Accuracy, %, mean over new tasks", columns, rows)


if __name__ == "__main__":
    main()
