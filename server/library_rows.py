"""Rows of tasks: how assignments and entries become rows, and rows become them again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
from sqlalchemy import Connection, Row, bindparam, func, insert, select, update
from sqlalchemy.dialects import sqlite

from common.budget_codec import budget_json, budget_of_json
from common.exchange import Contribution, Neighbour, TaskDescription
from common.mask import Mask
from common.signature import TaskSignature
from server.entries import Entry, EntryMethod, StoredAssignment
from server.library_file import RESTORE_FILE, DamagedRow
from server.library_header import Header
from server.library_schema import ASKED, OUTCOME, Values, is_whole, now, seal, tasks

# Statements are made once: SQLAlchemy takes longer to put one together than SQLite to run it.
ROW = select(tasks).where(tasks.c.id == bindparam("task"))
LAST_POSITION = select(func.max(tasks.c.position))
INSERT = insert(tasks)
ASSIGN = sqlite.insert(tasks).on_conflict_do_nothing(index_elements=["id"])
RECORD = update(tasks).where(tasks.c.id == bindparam("task"), tasks.c.position.is_(None))


def row_of(connection: Connection, task: str) -> Row[Any] | None:
    """A task's row, if there is one. DamagedRow if it is."""
    row = connection.execute(ROW, {"task": task}).one_or_none()
    if row is not None and not is_whole(row):
        raise DamagedRow(
            f"its row of task {task} is damaged, and such a row is not served; ask under a new request "
            f"id, or {RESTORE_FILE}"
        )
    return row


def next_position(connection: Connection) -> int:
    """The position of the entry that is recorded next; for a transaction that writes."""
    return (connection.execute(LAST_POSITION).scalar() or 0) + 1


def asked_values(
    task: str,
    method: EntryMethod,
    signature: TaskSignature,
    contributor: str,
    neighbours: Sequence[Neighbour] = (),
    assigned: StoredAssignment | None = None,
) -> Values:
    """A row's first part: a task, and what it was assigned if it was."""
    values: Values = {
        "id": task,
        "method": method,
        "contributor": contributor,
        "classes": signature.classes,
        "means": signature.means.astype("<f2").tobytes(),
        "counts": signature.counts.astype("<i4").tobytes(),
        "neighbours": json.dumps([[n.entry, float(n.similarity)] for n in neighbours]),
    }
    if assigned is not None:
        values |= {
            "budget": budget_json(assigned.description.budget),
            "origin": assigned.origin,
            "target": json.dumps([int(count) for count in assigned.target]),
            "rounds": assigned.rounds,
            "assigned_mask": assigned.mask.pack(),
        }
    return values | {"asked_sha256": seal(values, ASKED)}


def assigned_values(assigned: StoredAssignment) -> Values:
    """A row of a task that was assigned a sub-network and has no outcome yet."""
    asked, voted = assigned.description, assigned.neighbours
    return NO_OUTCOME | asked_values(
        asked.request_id, asked.method, asked.signature, assigned.contributor, voted, assigned
    )


def outcome_values(
    contribution: Contribution | Entry, position: int, recorded: str | None = None
) -> Values:
    """A row's second part, recorded now unless it says when."""
    values = {
        "position": position,
        "recorded": recorded or now(),
        "mask": contribution.mask.pack(),
        "accuracy_before": float(contribution.accuracy_before),
        "accuracy_after": float(contribution.accuracy_after),
        "iterations": int(contribution.iterations),
    }
    return values | {"outcome_sha256": seal(values, OUTCOME)}


NO_OUTCOME: Values = {"outcome_sha256": seal({}, OUTCOME)}
"""A row's second part until it is recorded."""


def entry_of(row: Row[Any], header: Header) -> Entry:
    """The entry in a whole row that is recorded."""
    return Entry(
        entry=row.id,
        signature=_signature_of(row, header),
        mask=Mask.unpack(header.structure, row.mask),
        method=row.method,
        accuracy_before=row.accuracy_before,
        accuracy_after=row.accuracy_after,
        iterations=row.iterations,
        neighbours=_neighbours_of(row),
        contributor=row.contributor,
        recorded=datetime.fromisoformat(row.recorded),
        position=row.position,
    )


def assignment_of(row: Row[Any], header: Header) -> StoredAssignment | None:
    """What is assigned in a whole row; None for a seed."""
    if row.budget is None:
        return None
    budget = budget_of_json(row.budget)
    return StoredAssignment(
        description=TaskDescription(row.id, _signature_of(row, header), budget, row.method),
        origin=row.origin,
        target=tuple(json.loads(row.target)),
        rounds=row.rounds,
        mask=Mask.unpack(header.structure, row.assigned_mask),
        neighbours=_neighbours_of(row),
        contributor=row.contributor,
    )


def _signature_of(row: Row[Any], header: Header) -> TaskSignature:
    means = np.frombuffer(row.means, dtype="<f2").astype(np.float16)
    counts = np.frombuffer(row.counts, dtype="<i4").astype(np.int32)
    return TaskSignature(header.probe_digest, means.reshape(row.classes, -1), counts)


def _neighbours_of(row: Row[Any]) -> tuple[Neighbour, ...]:
    return tuple(Neighbour(entry, similarity) for entry, similarity in json.loads(row.neighbours))
