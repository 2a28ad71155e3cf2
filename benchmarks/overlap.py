"""Do similar tasks share units? Overlap of a library's masks against the similarity of their tasks.

    python -m benchmarks.overlap benchmarks/results/accuracy

Reads the library of a comparison (see accuracy.py): relatedness is the share of classes that two
tasks have in common, overlap the intersection over union of their kept units.
"""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import click
import numpy as np

from common.command_line import show
from server.library import Library
from server.similarity import ClassStatistics
from simulations.tasks import draw_tasks

RELATED = 0.25
"""From this share of common classes on, two tasks count as related."""


@click.command()
@click.argument("path", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--classes", default=80, show_default=True, help="Classes in the comparison's data.")
@click.option("--ways", default=10, show_default=True)
def main(path: Path, classes: int, ways: int) -> None:
    """Print overlap by layer, for related and unrelated tasks; write PATH/overlap.json."""
    with Library.open(path / "library.db") as library:
        entries, offer = library.entries(), library.offer
    drawn = draw_tasks(classes, len(entries), ways, np.random.default_rng(0), "library")
    choices = {f"operator:{choice.name}": choice for choice in drawn}
    nearness = ClassStatistics(offer.probe.center)
    for entry in entries:
        nearness.add(entry.entry, entry.signature)
    related, similar, overlaps = [], [], []
    for one, other in combinations(entries, 2):
        names, values = nearness.to(one.signature)
        similar.append(float(values[list(names).index(other.entry)]))
        related.append(choices[one.contributor].relatedness(choices[other.contributor]))
        overlaps.append(list(one.mask.overlap(other.mask).values()))
    layers = np.array(overlaps)
    related_pairs = np.array(related) >= RELATED
    strangers = np.array(related) == 0
    keep = np.mean([entry.keep_ratio for entry in entries])

    def line(name: str, column: np.ndarray) -> list[str]:
        return [
            name,
            f"{column.mean():.3f}",
            f"{column[related_pairs].mean():.3f}",
            f"{column[strangers].mean():.3f}",
            f"{np.corrcoef(related, column)[0, 1]:.2f}",
        ]

    rows = [line(group.name, layers[:, k]) for k, group in enumerate(offer.structure.groups)] + [
        line("all", layers.mean(1))
    ]
    show(
        f"Overlap of {len(entries)} masks ({len(layers)} pairs, {related_pairs.sum()} related)",
        ["group", "mean", "related", "no common class", "correlation with relatedness"],
        rows,
        caption=f"By chance: {keep / (2 - keep):.3f}. Similarity of signatures against relatedness: "
        f"correlation {np.corrcoef(related, similar)[0, 1]:.2f}.",
    )
    record = {"related": related, "similarity": similar, "overlap": overlaps}
    (path / "overlap.json").write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
