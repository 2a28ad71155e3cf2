"""Library: signatures and masks of earlier tasks, where they came from, and how well they did.

One SQLite file holds every fact. A task's row begins when a sub-network is assigned and becomes an
entry when its mask is recorded; what the operator seeds is an entry at once. Every row carries
sha256 sums of its content, and a row that fails them is never served.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sqlalchemy import Connection, Row, bindparam, select

from common.errors import InputError
from common.exchange import Contribution, Offer, Receipt
from common.mask import Mask
from common.signature import TaskSignature
from common.structure import Structure
from server import library_contents
from server.admission import admit, check_asker, check_contributor, check_structure
from server.entries import Entry, EntryFacts, EntryMethod, Removal, Statistics, StoredAssignment
from server.library_contents import Numbers, Revision, revision_of
from server.library_file import LibraryFile, create
from server.library_header import Header, read_header, write_header
from server.library_rows import (
    ASSIGN,
    INSERT,
    RECORD,
    asked_values,
    assigned_values,
    assignment_of,
    entry_of,
    next_position,
    outcome_values,
    row_of,
)
from server.library_schema import is_whole, tasks
from server.removals import Decision, check_reason, decide, since, standing

__all__ = ["Entry", "EntryMethod", "Library", "Revision", "StoredAssignment", "seed_entry"]

SINCE = select(tasks).where(tasks.c.position > bindparam("after")).order_by(tasks.c.position)
POSITION = select(tasks.c.position).where(tasks.c.id == bindparam("task"))


def seed_entry(name: str, signature: TaskSignature) -> str:
    """The entry of an operator's own task: 32 hexadecimal digits, the same for the same task."""
    return hashlib.sha256(f"{signature.digest} {name}".encode()).hexdigest()[:32]


class Library:
    """A library in one file. Threads may share it, and processes the file.

    What a method acknowledges by returning is on the disk. Every method raises LibraryError where
    the file cannot be read or written: nothing stored is lost, and the call can be repeated.
    """

    def __init__(self, file: LibraryFile, header: Header) -> None:
        self.file = file
        self.path = file.path
        self.header = header
        self.weights_digest = header.weights_digest
        self._numbers = Numbers(file)

    @property
    def offer(self) -> Offer:
        """What devices need before they ask. LibraryError if the probe is damaged, the first time."""
        return self.header.offer

    @classmethod
    def create(cls, path: Path | str, offer: Offer, weights_digest: str) -> Self:
        """A new, empty library of this backbone; its file appears whole or not at all.

        Raises InputError where there is a file already.
        """
        path = Path(path)
        create(path, partial(write_header, offer=offer, weights_digest=weights_digest))
        return cls.open(path)

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """The library in a file, all of which is checked first. One of an older format is brought to
        this one.

        Raises LibraryError if there is none, it may not be read, it is damaged or of a newer format,
        or it is of an older one and may not be written. Tasks whose content alone is damaged do not
        hinder it: see `damaged`.
        """
        file = LibraryFile(Path(path))
        try:
            library = cls(file, read_header(file))
            library.removals()  # a damaged line is told now, not at the next vote
            return library
        except BaseException:
            file.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # What devices ask and give

    def assigned(self, assignment: StoredAssignment) -> StoredAssignment:
        """Store what a device is assigned; returns what is stored, which is what to answer.

        For a request that was assigned before that is the first assignment, and nothing changes.
        Raises InputError if the description differs from the first one's, or for a contributor's name
        that cannot be kept, AccessError if another contributor's request has this id, MismatchError for a
        signature or a mask of another library.
        """
        description = assignment.description
        check_contributor(assignment.contributor)
        check_structure(assignment.mask, self.structure)
        self.offer.probe.check(description.signature)
        if self.file.write(partial(self._assign, assignment)):
            return assignment
        stored = self.assignment_of(description.request_id)
        if stored is not None:
            check_asker(description.request_id, stored.contributor, assignment.contributor)
        if stored is None or stored.description != description:
            raise InputError(
                f"request {description.request_id} asked for something else before, and a request id "
                "stands for one task, method and budget; draw a new one"
            )
        return stored

    def _assign(self, assignment: StoredAssignment, connection: Connection) -> bool:
        return connection.execute(ASSIGN, assigned_values(assignment)).rowcount > 0

    def assignment_of(self, request_id: str) -> StoredAssignment | None:
        """What a request was assigned; None for one that never was, and for a seed."""
        with self.file.reading() as connection:
            row = row_of(connection, request_id)
        return None if row is None else assignment_of(row, self.header)

    def record(self, contribution: Contribution, contributor: str | None = None) -> Receipt:
        """Make a task an entry; the same contribution again gives the same receipt.

        Raises InputError for a request that was never assigned, for a mask that cannot come of what
        was, and for a contribution that differs from the stored one, which stays; AccessError if the
        request is not this contributor's, unless that is None; MismatchError for a mask of another
        library.
        """
        check_structure(contribution.mask, self.structure)
        task = contribution.request_id
        with self.file.reading() as connection:
            row = row_of(connection, task)
        if row is None:
            raise InputError(f"request {task} was never assigned here; ask for a sub-network first")
        check_asker(task, row.contributor, contributor)
        if (assigned := assignment_of(row, self.header)) is not None:
            admit(contribution, assigned)
        if row.position is not None:
            return _receipt(row, contribution)
        return self.file.write(partial(self._record, contribution))

    def _record(self, contribution: Contribution, connection: Connection) -> Receipt:
        task = contribution.request_id
        outcome = outcome_values(contribution, next_position(connection))
        if connection.execute(RECORD, {"task": task} | outcome).rowcount:
            return Receipt(task, outcome["position"])
        return _receipt(self._recorded(connection, task), contribution)

    def seed(
        self,
        entry: str,
        signature: TaskSignature,
        mask: Mask,
        *,
        accuracy_before: float,
        accuracy_after: float,
        iterations: int,
        method: EntryMethod = "iterative",
        contributor: str = "operator",
    ) -> Receipt:
        """Make an operator's own task an entry, named by `seed_entry`; the same again changes nothing.

        Raises InputError if the entry is taken by something else, a number is out of range, or the
        contributor's name cannot be kept; MismatchError for a signature or a mask of another library.
        """
        check_contributor(contributor)
        contribution = Contribution(entry, mask, accuracy_before, accuracy_after, iterations)
        check_structure(mask, self.structure)
        self.offer.probe.check(signature)
        asked = asked_values(entry, method, signature, contributor)

        def write(connection: Connection) -> Receipt:
            row = row_of(connection, entry)
            if row is None:
                outcome = outcome_values(contribution, next_position(connection))
                connection.execute(INSERT, asked | outcome)
                return Receipt(entry, outcome["position"])
            if row.asked_sha256 != asked["asked_sha256"]:
                raise InputError(f"entry {entry} is another task's; take the one that seed_entry gives")
            return _receipt(row, contribution)

        return self.file.write(write)

    # What there is

    def has(self, entry: str) -> bool:
        """Whether this entry is recorded."""
        with self.file.reading() as connection:
            return connection.execute(POSITION, {"task": entry}).scalar() is not None

    def entries(self, after: int = 0) -> list[Entry]:
        """Entries behind a position in the order of recording, removed ones too, without damaged ones."""
        with self.file.reading() as connection:
            rows = connection.execute(SINCE, {"after": after})
            return [entry_of(row, self.header) for row in rows if is_whole(row)]

    def removals(self, after: int = 0) -> list[Decision]:
        """The log of removals behind a line. LibraryError if a line is damaged."""
        with self.file.reading() as connection:
            return since(connection, after)

    def revision(self) -> Revision:
        """How far it has got, whoever wrote it; quick enough to be asked before every vote."""
        with self.file.reading() as connection:
            return revision_of(connection)

    def __len__(self) -> int:
        """How many entries are recorded, removed and damaged ones too: what the last receipt said."""
        return self.revision().position

    @property
    def damaged(self) -> tuple[str, ...]:
        """Ids of the tasks whose rows fail their sums, read anew from the file."""
        with self.file.reading() as connection:
            rows = connection.execute(select(tasks).order_by(tasks.c.id))
            return tuple(row.id for row in rows if not is_whole(row))

    # What operators do: see server.entries.Operations

    @property
    def structure(self) -> Structure:
        """The groups of units that its masks are about."""
        return self.header.structure

    def facts(self) -> Iterator[EntryFacts]:
        """Of all entries in the order of recording, removed ones too, without damaged ones."""
        for entry, removed in library_contents.recorded(self.file, self.header):
            yield entry.facts(removed)

    def export(self) -> Iterator[Entry]:
        """All entries that are not removed, in the order of recording, without damaged ones."""
        for entry, removed in library_contents.recorded(self.file, self.header):
            if removed is None:
                yield entry

    def entry(self, entry: str) -> Entry:
        """One entry, also if it is removed; InputError if it is not recorded, LibraryError if damaged."""
        with self.file.reading() as connection:
            return entry_of(self._recorded(connection, entry), self.header)

    def facts_of(self, entry: str) -> EntryFacts:
        """What there is to know of one entry; errors as of `entry`."""
        with self.file.reading() as connection:
            return self._facts_of(connection, entry)

    def removal_of(self, entry: str) -> Removal | None:
        """What is known of an entry's removal; None unless it is removed now."""
        with self.file.reading() as connection:
            return standing(connection, [entry]).get(entry)

    def remove(self, entry: str, by: str, reason: str) -> EntryFacts:
        """Take an entry out of all votes from now on; what is removed already stays as it is.

        `by` is at most 200, `reason` 1 to 500 printable characters, or InputError is raised; so it is
        for an entry that is not recorded.
        """
        return self._decide(entry, by, reason, removed=True)

    def restore(self, entry: str, by: str, reason: str) -> EntryFacts:
        """Let a removed entry vote again; the same rules as for `remove`."""
        return self._decide(entry, by, reason, removed=False)

    def _decide(self, entry: str, by: str, reason: str, *, removed: bool) -> EntryFacts:
        check_reason(by, reason)

        def write(connection: Connection) -> EntryFacts:
            facts = self._facts_of(connection, entry)
            if removed == (facts.removed is not None):
                return facts
            decide(connection, [entry], removed=removed, by=by, reason=reason)
            return self._facts_of(connection, entry)

        return self.file.write(write)

    def take_in(self, entries: Iterable[Entry]) -> tuple[int, int]:
        """Add entries, as they are but for their positions; how many were new, and how many there.

        InputError for an entry that breaks a rule or differs from the one that is there, MismatchError
        for one of another library; those before it stay, and taking in all of them again goes on.
        """
        return library_contents.take_in(self.file, self.header, entries)

    def statistics(self) -> Statistics:
        """What it holds, in numbers; damaged entries are counted."""
        return self._numbers.read()

    def _facts_of(self, connection: Connection, entry: str) -> EntryFacts:
        row = self._recorded(connection, entry)
        return entry_of(row, self.header).facts(standing(connection, [entry]).get(entry))

    def _recorded(self, connection: Connection, entry: str) -> Row[Any]:
        row = row_of(connection, entry)
        if row is None or row.position is None:
            raise InputError(f"there is no entry {entry[:40]!r}; list the entries to see those there are")
        return row


def _receipt(row: Row[Any], contribution: Contribution) -> Receipt:
    """The receipt of what is recorded; InputError if this contribution differs from it."""
    again = outcome_values(contribution, row.position, row.recorded)
    if again["outcome_sha256"] != row.outcome_sha256:
        raise InputError(
            f"entry {row.id} is recorded with another mask or other numbers, and the first stays; "
            "ask for a new sub-network to contribute again"
        )
    return Receipt(row.id, row.position)
