"""Library: signatures and masks of earlier tasks, where they came from, and how well they did.

One SQLite file holds every fact. A task's row begins when a sub-network is assigned and becomes an
entry when its mask is recorded; what the operator seeds is an entry at once. Every row carries
sha256 sums of its content, and a row that fails them is never served.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sqlalchemy import Connection, Engine, Row, func, insert, select, update

from common.errors import InputError, LibraryError, MaskvoteError, MismatchError
from common.exchange import Contribution, Offer, Receipt
from common.mask import Mask
from common.signature import TaskSignature
from server.library_file import RESTORE, check_is_database, connect, reported, sync_directory
from server.library_schema import (
    FORMAT,
    Entry,
    EntryMethod,
    StoredAssignment,
    asked_values,
    assigned_values,
    assignment_of,
    entry_of,
    header,
    is_whole,
    metadata,
    offer_of,
    outcome_values,
    standing_values,
    tasks,
)

__all__ = ["Entry", "EntryMethod", "Library", "StoredAssignment", "seed_entry"]


def seed_entry(name: str, signature: TaskSignature) -> str:
    """The entry of an operator's own task: 32 hexadecimal digits, the same for the same task."""
    return hashlib.sha256(f"{signature.digest} {name}".encode()).hexdigest()[:32]


class Library:
    """A library in one file. Threads may share it, and processes the file.

    What a method acknowledges by returning is on the disk. Every method raises LibraryError where
    the file cannot be read or written: nothing stored is lost, and the call can be repeated.
    """

    def __init__(self, path: Path, engine: Engine, offer: Offer, weights_digest: str) -> None:
        self.path = path
        self.offer = offer
        self.weights_digest = weights_digest
        self._engine = engine
        # SQLite lets waiting writers overtake each other; a lock spares the threads of one process.
        self._write_lock = threading.Lock()

    @classmethod
    def create(cls, path: Path | str, offer: Offer, weights_digest: str) -> Self:
        """A new, empty library of this backbone; its file appears whole or not at all.

        Raises InputError where there is a file already.
        """
        path = Path(path)
        # SQLite would replay a write-ahead log that an earlier library left into the new one.
        for taken in (path, path.with_name(f"{path.name}-wal")):
            if os.path.lexists(taken):
                raise InputError(
                    f"there is a file {taken} already, and a new library overwrites nothing; "
                    "open that library, move the file away, or give another path"
                )
        with (
            reported(path),
            tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as workshop,
        ):
            made = Path(workshop) / path.name
            engine = connect(made, create=True)
            try:
                with engine.begin() as connection:
                    metadata.create_all(connection)
                    connection.execute(insert(header).values(standing_values(offer, weights_digest)))
                with engine.connect() as connection:
                    # Closing would empty the log into the file too, but not tell when it fails.
                    connection.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            finally:
                engine.dispose()
            os.replace(made, path)
            sync_directory(path.parent)
        return cls.open(path)

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """The library in a file, all of which is checked first.

        Raises LibraryError if there is none, it may not be read, it is damaged or of another
        format. Tasks whose content alone is damaged do not hinder it: see `damaged`.
        """
        path = Path(path)
        with reported(path):
            check_is_database(path)
            engine = connect(path)
            try:
                with engine.connect() as connection:
                    # Not quick_check: it leaves out whether the indices agree with the rows.
                    found = connection.exec_driver_sql("PRAGMA integrity_check(1)").scalar_one()
                    if found != "ok":
                        raise LibraryError(f"the library {path}: it is damaged ({found}); {RESTORE}")
                    offer, weights_digest = _read_header(path, connection)
            except BaseException:
                engine.dispose()
                raise
        return cls(path, engine, offer, weights_digest)

    def close(self) -> None:
        """Close the file."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def assigned(self, assignment: StoredAssignment) -> StoredAssignment:
        """Store what a device is assigned; returns what is stored, which is what to answer.

        For a request that was assigned before that is the first assignment, and nothing changes.
        Raises InputError if the description differs from the first one's, MismatchError for a
        signature or a mask of another library.
        """
        description = assignment.description
        self._check_mask(assignment.mask)
        self.offer.probe.check(description.signature)
        with self._writing() as connection:
            row = self._row(connection, description.request_id)
            if row is None:
                values = assigned_values(assignment) | outcome_values()
                connection.execute(insert(tasks).values(values))
        stored = assignment if row is None else assignment_of(row, self.offer)
        if stored is None or stored.description != description:
            raise InputError(
                f"request {description.request_id} asked for something else before, and a request id "
                "stands for one task, method and budget; draw a new one"
            )
        return stored

    def assignment_of(self, request_id: str) -> StoredAssignment | None:
        """What a request was assigned; None for one that never was, and for a seed."""
        with self._reading() as connection:
            row = self._row(connection, request_id)
        return None if row is None else assignment_of(row, self.offer)

    def record(self, contribution: Contribution) -> Receipt:
        """Make a task an entry; the same contribution again gives the same receipt.

        Raises InputError for a request that was never assigned, and for a contribution that
        differs from the stored one, which stays; MismatchError for a mask of another library.
        """
        self._check_mask(contribution.mask)
        task = contribution.request_id
        with self._writing() as connection:
            row = self._row(connection, task)
            if row is None:
                raise InputError(f"request {task} was never assigned here; ask for a sub-network first")
            if row.position is None:
                outcome = outcome_values(contribution, _next_position(connection))
                connection.execute(update(tasks).where(tasks.c.id == task).values(outcome))
            else:
                outcome = _same_outcome(row, contribution)
        return Receipt(task, outcome["position"])

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

        Raises InputError if the entry is taken by something else, or a number is out of range;
        MismatchError for a signature or a mask of another library.
        """
        contribution = Contribution(entry, mask, accuracy_before, accuracy_after, iterations)
        self._check_mask(mask)
        self.offer.probe.check(signature)
        asked = asked_values(entry, method, signature, contributor)
        with self._writing() as connection:
            row = self._row(connection, entry)
            if row is None:
                outcome = outcome_values(contribution, _next_position(connection))
                connection.execute(insert(tasks).values(asked | outcome))
            elif row.asked_sha256 != asked["asked_sha256"]:
                raise InputError(f"entry {entry} is another task's; take the one that seed_entry gives")
            else:
                outcome = _same_outcome(row, contribution)
        return Receipt(entry, outcome["position"])

    def has(self, entry: str) -> bool:
        """Whether this entry is recorded."""
        with self._reading() as connection:
            position = select(tasks.c.position).where(tasks.c.id == entry)
            return connection.execute(position).scalar() is not None

    def entries(self) -> list[Entry]:
        """All entries in the order of recording, without damaged ones."""
        with self._reading() as connection:
            recorded = select(tasks).where(tasks.c.position.is_not(None)).order_by(tasks.c.position)
            return [entry_of(row, self.offer) for row in connection.execute(recorded) if is_whole(row)]

    def entry(self, entry: str) -> Entry:
        """One entry; InputError if it is not recorded, LibraryError if it is damaged."""
        with self._reading() as connection:
            row = self._row(connection, entry)
        if row is None or row.position is None:
            raise InputError(f"there is no entry {entry[:40]!r}; `entries` gives those that there are")
        return entry_of(row, self.offer)

    def __len__(self) -> int:
        """How many entries are recorded, damaged ones as well: what the last receipt said."""
        with self._reading() as connection:
            return connection.execute(select(func.count(tasks.c.position))).scalar_one()

    @property
    def damaged(self) -> tuple[str, ...]:
        """Ids of the tasks whose rows fail their sums, read anew from the file."""
        with self._reading() as connection:
            rows = connection.execute(select(tasks).order_by(tasks.c.id))
            return tuple(row.id for row in rows if not is_whole(row))

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with reported(self.path), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        """A transaction that writes; it is on the disk once this is left without an error."""
        writing = self._engine.execution_options(writes=True)
        with self._write_lock, reported(self.path), writing.begin() as connection:
            yield connection

    def _row(self, connection: Connection, task: str) -> Row[Any] | None:
        row = connection.execute(select(tasks).where(tasks.c.id == task)).one_or_none()
        if row is not None and not is_whole(row):
            raise LibraryError(
                f"the library {self.path}: its row of task {task} is damaged, and such a row is not "
                "served; ask under a new request id, or restore the file from a backup"
            )
        return row

    def _check_mask(self, mask: Mask) -> None:
        theirs, ours = mask.structure.digest, self.offer.structure.digest
        if theirs != ours:
            raise MismatchError(
                f"the mask is of structure {theirs[:12]}, this library's is {ours[:12]}; "
                "fetch what the library offers again"
            )


def _read_header(path: Path, connection: Connection) -> tuple[Offer, str]:
    # The format comes first, and alone: the header of another format may have other columns.
    written = connection.execute(select(header.c.format)).scalar()
    if written is None:
        raise LibraryError(f"the library {path}: it has no header; {RESTORE}")
    if written != FORMAT:
        raise LibraryError(
            f"the library {path}: its format is {written!r}, this version of maskvote reads {FORMAT}; "
            "use the version that wrote it"
        )
    row = connection.execute(select(header)).one()
    try:
        return offer_of(row), row.weights_digest
    except MaskvoteError as error:
        raise LibraryError(f"the library {path}: its header is damaged: {error}; {RESTORE}") from error


def _next_position(connection: Connection) -> int:
    return (connection.execute(select(func.max(tasks.c.position))).scalar() or 0) + 1


def _same_outcome(row: Row[Any], contribution: Contribution) -> dict[str, Any]:
    """The outcome that is recorded; InputError if this contribution differs from it."""
    again = outcome_values(contribution, row.position, row.recorded)
    if again["outcome_sha256"] != row.outcome_sha256:
        raise InputError(
            f"entry {row.id} is recorded with another mask or other numbers, and the first stays; "
            "ask for a new sub-network to contribute again"
        )
    return again
