"""What a library holds: its entries page by page, their numbers, and how entries of another join them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC
from functools import partial
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, bindparam, func, select

from common.errors import InputError
from server.admission import check_entry
from server.entries import Entry, Removal, Statistics
from server.library_file import LibraryFile
from server.library_header import Header
from server.library_rows import (
    INSERT,
    LAST_POSITION,
    RECORD,
    asked_values,
    entry_of,
    next_position,
    outcome_values,
    row_of,
)
from server.library_schema import is_whole, tasks
from server.removals import LAST_REMOVAL, removed_entries, standing

PAGE_ENTRIES = 100
"""Entries that are read, or stored, at a time."""
PAGE_BYTES = 4 * 2**20
"""Of their signatures, of which one that has a thousand classes takes as much by itself."""

PAGE = (
    select(tasks)
    .where(tasks.c.position > bindparam("after"))
    .order_by(tasks.c.position)
    .limit(PAGE_ENTRIES)
)
VOTING = (
    select(
        tasks.c.method,
        tasks.c.contributor,
        func.count(),
        func.sum(tasks.c.accuracy_before),
        func.sum(tasks.c.accuracy_after),
    )
    .where(tasks.c.position.is_not(None), tasks.c.id.not_in(removed_entries))
    .group_by(tasks.c.method, tasks.c.contributor)
)
REVISION = select(LAST_POSITION.scalar_subquery(), LAST_REMOVAL.scalar_subquery())
RECORDED = select(func.count()).where(tasks.c.position.is_not(None))
UNANSWERED = select(func.count()).where(tasks.c.position.is_(None))


def recorded(file: LibraryFile, header: Header) -> Iterator[tuple[Entry, Removal | None]]:
    """All entries in the order of recording, without damaged ones, and whether each is removed.

    Between pages no transaction is open, however long whoever asks takes.
    """
    after = 0
    while True:
        with file.reading() as connection:
            rows = _page(connection, after)
            removed = standing(connection, [row.id for row in rows])
        for row in rows:
            if is_whole(row):
                yield entry_of(row, header), removed.get(row.id)
        if not rows:
            return
        after = rows[-1].position


class Revision(NamedTuple):
    """How far a library has got: its last entry, and the last line in its log of removals; 0 is none.

    Later ones are larger: what was committed between is behind the earlier one.
    """

    position: int
    removal: int


def revision_of(connection: Connection) -> Revision:
    """How far the library has got in the state that this transaction reads."""
    position, removal = connection.execute(REVISION).one()
    return Revision(position or 0, removal or 0)


class Tally(NamedTuple):
    """Of a method and a contributor: how many entries vote, and their accuracies in sum."""

    method: str
    contributor: str
    entries: int
    before: float
    after: float


class Numbers:
    """A library in numbers, for whoever asks again and again. Threads may share them.

    What is summed over the entries that vote is kept until the revision is another: a row's accuracies
    lie behind its signature and masks, so that to sum them is to read the whole file.
    """

    def __init__(self, file: LibraryFile) -> None:
        self._file = file
        self._summed: tuple[Revision, list[Tally]] | None = None

    def read(self) -> Statistics:
        """Its numbers now. Entries that are damaged are counted, as their sums are not checked."""
        with self._file.reading() as connection:
            tallies = self._tallies(connection)
            entries = connection.execute(RECORDED).scalar_one()
            unanswered = connection.execute(UNANSWERED).scalar_one()
            file_bytes = self._file.path.stat().st_size
        by_method: Counter[str] = Counter()
        by_contributor: Counter[str] = Counter()
        for tally in tallies:
            by_method[tally.method] += tally.entries
            by_contributor[tally.contributor] += tally.entries
        voting = sum(by_method.values())
        return Statistics(
            voting=voting,
            removed=entries - voting,
            unanswered=unanswered,
            by_method=dict(by_method),
            by_contributor=dict(by_contributor),
            accuracy_before=sum(tally.before for tally in tallies) / max(1, voting),
            accuracy_after=sum(tally.after for tally in tallies) / max(1, voting),
            file_bytes=file_bytes,
        )

    def _tallies(self, connection: Connection) -> list[Tally]:
        revision, summed = revision_of(connection), self._summed
        if summed is None or summed[0] != revision:
            self._summed = summed = revision, [Tally(*row) for row in connection.execute(VOTING)]
        return summed[1]


def take_in(file: LibraryFile, header: Header, entries: Iterable[Entry]) -> tuple[int, int]:
    """Add entries; how many were new, and how many there. See `Operations.take_in`."""
    added = present = 0

    def store(page: Sequence[Entry]) -> None:
        nonlocal added, present
        new, old, refusal = file.write(partial(_store, header, page))
        added, present = added + new, present + old
        if refusal is not None:
            raise refusal

    page: list[Entry] = []
    try:
        for entry in entries:
            check_entry(entry, header.offer)
            page.append(entry)
            if _is_full([kept.signature.means.nbytes for kept in page]):
                full, page = page, []
                store(full)
    finally:
        # Those before one that is refused stay, and so do those before their sender gave up.
        if page:
            store(page)
    return added, present


def _page(connection: Connection, after: int) -> list[Row[Any]]:
    """The rows behind a position, up to a page of them; none at the end.

    Their signatures are read even for whoever wants none of them: a row's sums are over all of it.
    """
    rows: list[Row[Any]] = []
    with connection.execute(PAGE, {"after": after}) as found:
        for row in found:
            rows.append(row)
            if _is_full([len(read.means) for read in rows]):
                break
    return rows


def _is_full(signature_bytes: Sequence[int]) -> bool:
    """Whether so many signatures of these sizes are a page."""
    return len(signature_bytes) >= PAGE_ENTRIES or sum(signature_bytes) >= PAGE_BYTES


def _store(
    header: Header, page: Sequence[Entry], connection: Connection
) -> tuple[int, int, InputError | None]:
    """How many entries were new, and how many there, up to one that is refused."""
    added = 0
    for place, entry in enumerate(page):
        try:
            added += _store_one(header, entry, connection)
        except InputError as refusal:
            return added, place - added, refusal
    return added, len(page) - added, None


def _store_one(header: Header, entry: Entry, connection: Connection) -> bool:
    """Whether the entry is new. InputError if something else has its name."""
    asked = asked_values(entry.entry, entry.method, entry.signature, entry.contributor, entry.neighbours)
    row = row_of(connection, entry.entry)
    if row is not None and row.position is not None:
        if replace(entry, position=row.position) == entry_of(row, header):
            return False
    elif row is None or all(
        row._mapping[name] == asked[name] for name in asked.keys() - {"asked_sha256"}
    ):
        recorded = entry.recorded.astimezone(UTC).isoformat()
        outcome = outcome_values(entry, next_position(connection), recorded)
        if row is None:
            connection.execute(INSERT, asked | outcome)
        else:
            # An earlier copy of this library assigned it; by now it is recorded.
            connection.execute(RECORD, {"task": entry.entry} | outcome)
        return True
    raise InputError(
        f"entry {entry.entry} differs from the task of that name that is here, which stays; leave it out"
    )
