"""The library's tables, and how assignments and entries become rows and rows become them again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
from sqlalchemy import REAL, CheckConstraint, Column, Integer, LargeBinary, MetaData, Row, Table, Text

from common.backbone import Backbone
from common.errors import LibraryError
from common.exchange import (
    Budget,
    Choice,
    Contribution,
    Method,
    Neighbour,
    Offer,
    Origin,
    TaskDescription,
)
from common.mask import Mask
from common.signature import Probe, TaskSignature
from common.structure import Structure

FORMAT = 1

Values = dict[str, Any]
"""Column name -> value, as they are stored."""

metadata = MetaData()

STANDING = (
    Column("id", Integer, CheckConstraint("id = 1"), primary_key=True),
    Column("format", Integer, nullable=False),
    Column("created", Text, nullable=False),
    Column("backbone", Text, nullable=False),
    Column("weights_digest", Text, nullable=False),
    Column("structure", Text, nullable=False),
    Column("structure_digest", Text, nullable=False),
    Column("probe", LargeBinary, nullable=False),
    Column("probe_digest", Text, nullable=False),
)
"""What the library stands for, in one row that never changes."""

ASKED = (
    Column("id", Text, primary_key=True),
    Column("method", Text, nullable=False),
    Column("contributor", Text, nullable=False),
    Column("classes", Integer, nullable=False),
    Column("means", LargeBinary, nullable=False),
    Column("counts", LargeBinary, nullable=False),
    Column("neighbours", Text, nullable=False),
    Column("budget", Text),
    Column("origin", Text),
    Column("target", Text),
    Column("rounds", Integer),
    Column("assigned_mask", LargeBinary),
)
"""A task's signature and what was assigned for it; a seed was assigned nothing."""

OUTCOME = (
    Column("position", Integer, unique=True),
    Column("recorded", Text),
    Column("mask", LargeBinary),
    Column("accuracy_before", REAL),
    Column("accuracy_after", REAL),
    Column("iterations", Integer),
)
"""The mask that a task ended with, and how it did: NULL until it is recorded."""

header = Table("header", metadata, *STANDING, Column("sha256", Text, nullable=False))

tasks = Table(
    "tasks",
    metadata,
    *ASKED,
    Column("asked_sha256", Text, nullable=False),
    *OUTCOME,
    Column("outcome_sha256", Text, nullable=False),
)


def seal(values: Mapping[Any, Any], columns: Iterable[Column]) -> str:
    """sha256 over the names and values of these columns; a value that is missing counts as NULL."""
    row = [[column.name, values.get(column.name)] for column in columns]
    return hashlib.sha256(json.dumps(row, default=bytes.hex).encode()).hexdigest()


def is_whole(row: Row[Any]) -> bool:
    """Whether a task's row still has the content that it was written with."""
    values = row._mapping
    return row.asked_sha256 == seal(values, ASKED) and row.outcome_sha256 == seal(values, OUTCOME)


EntryMethod = Method | Literal["iterative"]
"""How an entry's mask was made: by a vote and what followed, or by iterative pruning."""


@dataclass(frozen=True)
class Entry:
    """An earlier task: its signature, the mask it ended with, and how well that did.

    Accuracies are in [0, 1]. `position` counts entries from 1 in the order of recording.
    """

    entry: str
    signature: TaskSignature
    mask: Mask
    method: EntryMethod
    accuracy_before: float
    accuracy_after: float
    iterations: int
    neighbours: tuple[Neighbour, ...]
    contributor: str
    recorded: datetime
    position: int

    @property
    def keep_ratio(self) -> float:
        """The share of the backbone's units that the mask keeps, in (0, 1]."""
        return self.mask.density


@dataclass(frozen=True)
class StoredAssignment:
    """What a device asked and was assigned: enough to answer the same again."""

    description: TaskDescription
    origin: Origin
    target: tuple[int, ...]
    rounds: int
    mask: Mask
    neighbours: tuple[Neighbour, ...]
    contributor: str

    @property
    def choice(self) -> Choice:
        """What the device is told of it, before its network is cut."""
        return Choice(
            request_id=self.description.request_id,
            method=self.description.method,
            origin=self.origin,
            mask=self.mask,
            target=self.target,
            rounds=self.rounds,
            neighbours=self.neighbours,
        )


def standing_values(offer: Offer, weights_digest: str) -> Values:
    """The header's row."""
    values = {
        "id": 1,
        "format": FORMAT,
        "created": _now(),
        "backbone": offer.backbone.to_json(),
        "weights_digest": weights_digest,
        "structure": offer.structure.to_json(),
        "structure_digest": offer.structure.digest,
        "probe": bytes(offer.probe.to_bytes()),
        "probe_digest": offer.probe.digest,
    }
    return values | {"sha256": seal(values, STANDING)}


def offer_of(row: Row[Any]) -> Offer:
    """What the header's row offers; LibraryError or the content's own error where it is damaged."""
    if row.sha256 != seal(row._mapping, STANDING):
        raise LibraryError("its content does not have the sha256 that is written beside it")
    structure = Structure.from_json(row.structure)
    probe = Probe.from_bytes(row.probe, structure)
    for name, digest, written in (
        ("structure", structure.digest, row.structure_digest),
        ("probe", probe.digest, row.probe_digest),
    ):
        if digest != written:
            raise LibraryError(f"the {name}'s digest is {digest[:12]}, written is {written[:12]}")
    return Offer(Backbone.from_json(row.backbone), structure, probe)


def asked_values(
    task: str,
    method: EntryMethod,
    signature: TaskSignature,
    contributor: str,
    neighbours: Sequence[Neighbour] = (),
) -> Values:
    """A row's first part for a task that was assigned nothing."""
    return _sealed(
        {
            "id": task,
            "method": method,
            "contributor": contributor,
            "classes": signature.classes,
            "means": signature.means.astype("<f2").tobytes(),
            "counts": signature.counts.astype("<i4").tobytes(),
            "neighbours": json.dumps([[n.entry, float(n.similarity)] for n in neighbours]),
        }
    )


def assigned_values(stored: StoredAssignment) -> Values:
    """A row's first part for a task and what it was assigned."""
    asked = stored.description
    return _sealed(
        {
            **asked_values(
                asked.request_id, asked.method, asked.signature, stored.contributor, stored.neighbours
            ),
            "budget": json.dumps(asdict(asked.budget)),
            "origin": stored.origin,
            "target": json.dumps([int(count) for count in stored.target]),
            "rounds": stored.rounds,
            "assigned_mask": stored.mask.pack(),
        }
    )


def _sealed(asked: Values) -> Values:
    return asked | {"asked_sha256": seal(asked, ASKED)}


def outcome_values(
    contribution: Contribution | None = None, position: int | None = None, recorded: str | None = None
) -> Values:
    """A row's second part, recorded now unless it says when; without a contribution it is empty."""
    values: Values = {}
    if contribution is not None:
        values = {
            "position": position,
            "recorded": recorded or _now(),
            "mask": contribution.mask.pack(),
            "accuracy_before": float(contribution.accuracy_before),
            "accuracy_after": float(contribution.accuracy_after),
            "iterations": int(contribution.iterations),
        }
    return values | {"outcome_sha256": seal(values, OUTCOME)}


def entry_of(row: Row[Any], offer: Offer) -> Entry:
    """The entry in a whole row that is recorded."""
    return Entry(
        entry=row.id,
        signature=_signature_of(row, offer),
        mask=Mask.unpack(offer.structure, row.mask),
        method=row.method,
        accuracy_before=row.accuracy_before,
        accuracy_after=row.accuracy_after,
        iterations=row.iterations,
        neighbours=_neighbours_of(row),
        contributor=row.contributor,
        recorded=datetime.fromisoformat(row.recorded),
        position=row.position,
    )


def assignment_of(row: Row[Any], offer: Offer) -> StoredAssignment | None:
    """What is assigned in a whole row; None for a seed."""
    if row.budget is None:
        return None
    budget = Budget(**json.loads(row.budget))
    return StoredAssignment(
        description=TaskDescription(row.id, _signature_of(row, offer), budget, row.method),
        origin=row.origin,
        target=tuple(json.loads(row.target)),
        rounds=row.rounds,
        mask=Mask.unpack(offer.structure, row.assigned_mask),
        neighbours=_neighbours_of(row),
        contributor=row.contributor,
    )


def _signature_of(row: Row[Any], offer: Offer) -> TaskSignature:
    means = np.frombuffer(row.means, dtype="<f2").astype(np.float16)
    counts = np.frombuffer(row.counts, dtype="<i4").astype(np.int32)
    return TaskSignature(offer.probe.digest, means.reshape(row.classes, -1), counts)


def _neighbours_of(row: Row[Any]) -> tuple[Neighbour, ...]:
    return tuple(Neighbour(entry, similarity) for entry, similarity in json.loads(row.neighbours))


def _now() -> str:
    return datetime.now(UTC).isoformat()
