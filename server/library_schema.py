"""The library's tables, and the sums that tell whether a row is as it was written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    REAL,
    CheckConstraint,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Row,
    Table,
    Text,
)

FORMAT = 2
"""1: header and tasks. 2: removals and tokens too."""

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
"""What the library stands for, in one row that changes with the format alone."""

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

DECIDED = (
    Column("number", Integer, primary_key=True),
    Column("entry", Text, nullable=False),
    Column("removed", Integer, CheckConstraint("removed IN (0, 1)"), nullable=False),
    Column("at", Text, nullable=False),
    Column("by", Text, nullable=False),
    Column("reason", Text, nullable=False),
)
"""That an entry was removed, or restored. An entry's last row holds; rows are only ever added."""

ISSUED = (
    Column("number", Integer, primary_key=True),
    Column("name", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("token_sha256", Text, nullable=False, unique=True),
    Column("created", Text, nullable=False),
    Column("revoked", Text),
    Column("revoked_by", Text),
)
"""Whom a token lets in, and until when. The token itself is nowhere."""

header = Table("header", metadata, *STANDING, Column("sha256", Text, nullable=False))

tasks = Table(
    "tasks",
    metadata,
    *ASKED,
    Column("asked_sha256", Text, nullable=False),
    *OUTCOME,
    Column("outcome_sha256", Text, nullable=False),
)

removals = Table("removals", metadata, *DECIDED, Column("sha256", Text, nullable=False))
Index("removals_of_entry", removals.c.entry, removals.c.number)

tokens = Table("tokens", metadata, *ISSUED, Column("sha256", Text, nullable=False))
Index("live_tokens", tokens.c.name, unique=True, sqlite_where=tokens.c.revoked.is_(None))


def seal(values: Mapping[Any, Any], columns: Iterable[Column]) -> str:
    """sha256 over the names and values of these columns; a value that is missing counts as NULL."""
    row = [[column.name, values.get(column.name)] for column in columns]
    return hashlib.sha256(json.dumps(row, default=bytes.hex).encode()).hexdigest()


def sealed(values: Values, columns: Iterable[Column]) -> Values:
    """A row with its sum, for a table that has one."""
    return values | {"sha256": seal(values, columns)}


def is_sealed(row: Row[Any], columns: Iterable[Column]) -> bool:
    """Whether a row with one sum still has the content that it was written with."""
    return row.sha256 == seal(row._mapping, columns)


def is_whole(row: Row[Any]) -> bool:
    """Whether a task's row still has the content that it was written with."""
    values = row._mapping
    return row.asked_sha256 == seal(values, ASKED) and row.outcome_sha256 == seal(values, OUTCOME)


def now() -> str:
    """This moment, as times are stored."""
    return datetime.now(UTC).isoformat()
