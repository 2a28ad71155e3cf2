"""The table of a comparison, from its records: mean accuracy, spread over tasks, paired differences.

    python -m benchmarks.accuracy_table benchmarks/results/accuracy [--markdown]

A difference is that to SMSP on the same task and seed; its interval is two standard errors wide on
each side. Only tasks on which every way was run count.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import click
import numpy as np

from common.command_line import show
from simulations.comparison import recorded

REFERENCE = "SMSP"


def table(path: Path) -> tuple[list[str], list[list[str]], int]:
    """Columns, rows (best first), and how many tasks were complete."""
    cells: dict[tuple, dict[str, dict]] = defaultdict(dict)
    for record in recorded(path / "cells.jsonl"):
        cells[record["seed"], record["task"]][record["way"]] = record
    ways = list(dict.fromkeys(way for done in cells.values() for way in done))
    complete = [done for done in cells.values() if len(done) == len(ways)]
    points = list(complete[0][REFERENCE]["accuracies"]) if complete else []
    rows = []
    for way in ways:
        values = np.array(
            [[_at(done[way]["accuracies"], point) for point in points] for done in complete]
        )
        last = values[:, -1]
        against = last - np.array([list(done[REFERENCE]["accuracies"].values())[-1] for done in complete])
        error = 2 * against.std(ddof=1) / np.sqrt(len(against)) if len(against) > 1 else float("nan")
        seconds = np.mean([sum(done[way]["seconds"][s] for s in ("fit", "tune")) for done in complete])
        iterations = [max(map(int, done[way]["accuracies"])) for done in complete]
        rows.append(
            (
                last.mean(),
                [
                    way,
                    *(f"{100 * mean:.1f}" if np.isfinite(mean) else "" for mean in values.mean(0)),
                    f"{100 * last.std(ddof=1):.1f}" if len(last) > 1 else "",
                    "" if way == REFERENCE else f"{100 * against.mean():+.1f} ± {100 * error:.1f}",
                    f"{np.mean([done[way]['parameters'] for done in complete]) / 1e6:.2f}",
                    str(iterations[0]),
                    f"{seconds:.0f}",
                ],
            )
        )
    rows.sort(key=lambda row: -row[0])
    columns = [
        "way",
        *(f"at {point}" for point in points[:-1]),
        "in the end",
        "spread",
        f"minus {REFERENCE}",
        "M parameters",
        "iterations",
        "seconds",
    ]
    return columns, [row for _, row in rows], len(complete)


def _at(accuracies: dict[str, float], point: str) -> float:
    """Accuracy at a point of the reference's curve; a longer run's end stands for the last one."""
    if point in accuracies and len(accuracies) <= 3:
        return accuracies[point]
    last = str(max(map(int, accuracies)))
    return accuracies[last] if point == "50" else accuracies.get(point, float("nan"))


@click.command()
@click.argument("path", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--markdown", is_flag=True)
def main(path: Path, markdown: bool) -> None:
    """Print the table of the records in PATH."""
    columns, rows, tasks = table(path)
    if markdown:
        click.echo(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
        for row in rows:
            click.echo(f"| {' | '.join(row)} |")
    else:
        show(f"Accuracy, %, mean over {tasks} new tasks", columns, rows)


if __name__ == "__main__":
    main()
