"""Removals: entries that take no part in votes, as a log that is only ever added to.

An entry's last line in the log holds. A damaged line is never skipped: whoever it removed would vote.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, bindparam, func, insert, select

from common.errors import InputError
from server.entries import MAX_NAME_CHARACTERS, MAX_REASON_CHARACTERS, Removal
from server.library_file import RESTORE, DamagedRow
from server.library_schema import DECIDED, is_sealed, now, removals, sealed


@dataclass(frozen=True)
class Decision:
    """A line of the log, numbered from 1: an entry was removed, or restored."""

    number: int
    entry: str
    removed: bool
    at: datetime
    by: str
    reason: str

    @property
    def removal(self) -> Removal | None:
        """What holds of the entry if this is its last line."""
        return Removal(self.at, self.by, self.reason) if self.removed else None


LAST_REMOVAL = select(func.max(removals.c.number))
SINCE = select(removals).where(removals.c.number > bindparam("number")).order_by(removals.c.number)

LAST = select(removals).where(
    removals.c.number.in_(
        select(func.max(removals.c.number))
        .where(removals.c.entry.in_(bindparam("entries", expanding=True)))
        .group_by(removals.c.entry)
    )
)

removed_entries = (
    select(removals.c.entry)
    .where(
        removals.c.removed == 1,
        removals.c.number.in_(select(func.max(removals.c.number)).group_by(removals.c.entry)),
    )
    .scalar_subquery()
)
"""The entries that are removed, for other statements."""


def check_reason(by: str, reason: str) -> None:
    """Raise InputError unless these can stand in the log."""
    problems = []
    if len(by) > MAX_NAME_CHARACTERS or not by.isprintable():
        problems.append(f"{by[:40]!r} removes: at most {MAX_NAME_CHARACTERS} printable characters")
    if not 1 <= len(reason) <= MAX_REASON_CHARACTERS or not reason.isprintable():
        problems.append(
            f"the reason has {len(reason)} characters ({reason[:40]!r}): "
            f"1 to {MAX_REASON_CHARACTERS}, all printable"
        )
    if problems:
        raise InputError(f"{'; '.join(problems)}; say who and why in one line")


def since(connection: Connection, number: int) -> list[Decision]:
    """The log after that line. DamagedRow if a line in it is."""
    return [_decision(row) for row in connection.execute(SINCE, {"number": number})]


def standing(connection: Connection, entries: Sequence[str]) -> Mapping[str, Removal]:
    """Those of the entries that are removed. DamagedRow if a line of theirs is."""
    last = map(_decision, connection.execute(LAST, {"entries": entries}))
    return {line.entry: line.removal for line in last if line.removal is not None}


def decide(
    connection: Connection, entries: Iterable[str], *, removed: bool, by: str, reason: str
) -> None:
    """Add a line for each entry."""
    values = {"removed": int(removed), "at": now(), "by": by, "reason": reason}
    number = connection.execute(LAST_REMOVAL).scalar() or 0
    rows = [
        sealed({"number": number + place, "entry": entry, **values}, DECIDED)
        for place, entry in enumerate(entries, 1)
    ]
    if rows:
        connection.execute(insert(removals), rows)


def _decision(row: Row[Any]) -> Decision:
    if not is_sealed(row, DECIDED):
        raise DamagedRow(
            f"line {row.number} of its removals is damaged, and what that removed might vote again; "
            f"{RESTORE}"
        )
    return Decision(
        row.number, row.entry, bool(row.removed), datetime.fromisoformat(row.at), row.by, row.reason
    )
