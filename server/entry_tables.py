"""Entries as tables for people and JSON for scripts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime
from typing import Any

import numpy as np

from common.command_line import show_json
from common.signature import TaskSignature
from common.structure import Structure
from common.tables import show
from server.entries import Entry, EntryFacts, Statistics

Row = dict[str, Any]


def show_entries(title: str, entries: Iterable[EntryFacts], structure: Structure, as_json: bool) -> None:
    """A line for each entry."""
    rows = [_row(facts, structure) | {"neighbours": len(facts.neighbours)} for facts in entries]
    if as_json:
        show_json(rows)
        return
    show(
        title,
        [
            "entry", "by", "method", "classes", "images", "kept", "parameters", "before", "after",
            "iterations", "removed",
        ],
        [
            [
                row["entry"][:12], row["contributor"], row["method"], row["classes"],
                row["images"], f"{row['keep_ratio']:.1%}", f"{row['parameters']:,}",
                f"{row['accuracy_before']:.1%}", f"{row['accuracy_after']:.1%}", row["iterations"],
                row["removed"] and row["removed"]["at"][:10],
            ]
            for row in rows
        ],
    )  # fmt: skip


def show_entry(entry: Entry, facts: EntryFacts, as_json: bool) -> None:
    """All that is told of one entry: its facts, its signature in numbers, its neighbours, its mask."""
    mask = entry.mask
    row = _row(facts, mask.structure) | {
        "neighbours": [asdict(neighbour) for neighbour in facts.neighbours],
        "signature": _numbers(entry.signature),
        "kept": dict(zip(mask, mask.counts, strict=True)),
    }
    if as_json:
        show_json(row)
        return
    show(
        f"Entry {facts.entry}",
        ["fact", "value"],
        [
            ["position", facts.position],
            ["contributor", facts.contributor],
            ["recorded", row["recorded"]],
            ["removed", row["removed"] and "{at} by {by}: {reason}".format(**row["removed"])],
            ["method", facts.method],
            ["accuracy before, after", f"{facts.accuracy_before:.1%}, {facts.accuracy_after:.1%}"],
            ["iterations", f"{facts.iterations:,}"],
            ["units kept", f"{facts.units:,} of {mask.structure.units:,} ({row['keep_ratio']:.1%})"],
            ["parameters", f"{facts.parameters:,}"],
            ["classes", facts.classes],
            ["images", f"{facts.images:,}"],
            *[[name.replace("_", " "), value] for name, value in row["signature"].items()],
        ],
    )
    show(
        "Neighbours that voted for it",
        ["entry", "similarity"],
        [[neighbour.entry, f"{neighbour.similarity:.3f}"] for neighbour in facts.neighbours],
    )
    show(
        "Its mask",
        ["group", "kept", "units"],
        [[group.name, mask[group.name].sum(), group.units] for group in mask.structure.groups],
    )


def show_statistics(title: str, statistics: Statistics, as_json: bool) -> None:
    """What a library holds, in numbers."""
    if as_json:
        show_json(asdict(statistics))
        return
    show(
        title,
        ["what", "number"],
        [
            ["entries that vote", f"{statistics.voting:,}"],
            ["removed entries", f"{statistics.removed:,}"],
            ["requests without a contribution", f"{statistics.unanswered:,}"],
            ["mean accuracy before tuning", f"{statistics.accuracy_before:.1%}"],
            ["mean accuracy after tuning", f"{statistics.accuracy_after:.1%}"],
            ["bytes of the library's file", f"{statistics.file_bytes:,}"],
            *[[f"entries by {name}", f"{n:,}"] for name, n in statistics.by_method.items()],
            *[
                [f"entries of {name or 'unknown'}", f"{n:,}"]
                for name, n in statistics.by_contributor.items()
            ],
        ],
    )


def in_seconds(moment: datetime) -> str:
    """A moment as it is shown."""
    return moment.isoformat(timespec="seconds")


def _row(facts: EntryFacts, structure: Structure) -> Row:
    removed = facts.removed
    return {
        "entry": facts.entry,
        "method": facts.method,
        "contributor": facts.contributor,
        "classes": facts.classes,
        "images": facts.images,
        "keep_ratio": round(facts.units / structure.units, 4) if structure.units else 1.0,
        "parameters": facts.parameters,
        "accuracy_before": facts.accuracy_before,
        "accuracy_after": facts.accuracy_after,
        "iterations": facts.iterations,
        "recorded": in_seconds(facts.recorded),
        "removed": None
        if removed is None
        else {"at": in_seconds(removed.at), "by": removed.by, "reason": removed.reason},
    }


def _numbers(signature: TaskSignature) -> Row:
    """A signature in a few numbers: how unlike in size and in features its classes are."""
    means, counts = signature.means.astype(np.float64), signature.counts
    return {
        "probe": signature.probe,
        "width": means.shape[1],
        "images_of_smallest_class": int(counts.min()),
        "images_of_largest_class": int(counts.max()),
        "distance_of_classes_from_their_mean": round(
            float(np.linalg.norm(means - means.mean(axis=0), axis=1).mean()), 4
        ),
    }
