"""The library's file: how it is connected to, and the one place where its errors become LibraryError."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import sqlalchemy
from sqlalchemy import Connection, Engine, QueuePool

from common.errors import DamagedError, InputError, LibraryError
from common.files import sync_directory
from server.write_queue import WriteQueue, database_of

Result = TypeVar("Result")

BUSY_TIMEOUT_SECONDS = 30
"""How long a writer waits for another process: many times the longest transaction here."""

PRAGMAS = (
    f"busy_timeout = {BUSY_TIMEOUT_SECONDS * 1000}",
    "journal_mode = WAL",
    # Every commit is on the disk before it is acknowledged; NORMAL would lose the last ones.
    "synchronous = FULL",
    "foreign_keys = ON",
)


def connect(path: Path, *, create: bool = False) -> Engine:
    """An engine on the file, which must exist unless it is to be created.

    A transaction takes the write lock at its start if its connection has the execution option
    `writes`; taken later, it could fail for a reader that another writer overtook.
    """
    uri = f"file:{quote(os.fsencode(path.absolute()))}?mode={'rwc' if create else 'rw'}"

    def connection() -> sqlite3.Connection:
        return sqlite3.connect(
            uri,
            uri=True,
            timeout=BUSY_TIMEOUT_SECONDS,
            check_same_thread=False,  # the pool hands connections from thread to thread
            isolation_level=None,  # transactions begin where `begin` says, not at the first INSERT
        )

    # As many connections as threads ever ask at once; opening one costs as much as ten queries.
    engine = sqlalchemy.create_engine(
        "sqlite://", creator=connection, poolclass=QueuePool, pool_size=0, pool_use_lifo=True
    )

    @sqlalchemy.event.listens_for(engine, "connect")
    def set_pragmas(connection: sqlite3.Connection, _: object) -> None:
        for pragma in PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")
        # Text that is damaged still reads, so that its row's sum can tell, and no other row suffers.
        connection.text_factory = lambda text: text.decode(errors="surrogateescape")

    @sqlalchemy.event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes", False)
        database_of(connection).execute("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


class LibraryFile:
    """The file while it is open. Threads may share it, and processes the file.

    Raises LibraryError where there is no such file, or it is no database or a damaged one; so does
    every method where it cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with reported(path):
            check_is_file(path)
            self._engine = connect(path)
            # SQLite lets waiting writers overtake each other; a queue spares the threads of one process.
            self._writes = WriteQueue(self._engine.execution_options(writes=True).begin)
            try:
                self._check_integrity()
            except BaseException:
                self.close()
                raise

    def _check_integrity(self) -> None:
        with self._engine.connect() as connection:
            # Not quick_check: it leaves out whether the indices agree with the rows.
            found = connection.exec_driver_sql("PRAGMA integrity_check(1)").scalar_one()
        if found != "ok":
            raise LibraryError(f"the library {self.path}: it is damaged ({found}); {RESTORE}")

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that reads: one state of the file, of everything that was committed before."""
        with reported(self.path), self._engine.connect() as connection:
            yield connection

    def write(self, change: Callable[[Connection], Result]) -> Result:
        """What a change returns, once it is on the disk. It is made alone, and as a whole or not at all.

        Changes of other threads may share its transaction, so it must not wait for any of them.
        """
        with reported(self.path):
            return self._writes.write(change)

    def close(self) -> None:
        """Close all connections to the file."""
        self._engine.dispose()


def create(path: Path, fill: Callable[[Connection], None]) -> None:
    """A new file that `fill` has filled, as of `appearing`."""
    with appearing(path) as made:
        engine = connect(made, create=True)
        try:
            with engine.begin() as connection:
                fill(connection)
            with engine.connect() as connection:
                # Closing would empty the log into the file too, but not tell when it fails.
                database_of(connection).execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            engine.dispose()


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """Where to make a new file: at `path`, and whole, once this is left without an error, or not at all.

    InputError where there is a file already, LibraryError where none can be made.
    """
    check_is_free(path)
    with (
        reported(path),
        tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as workshop,
    ):
        made = Path(workshop) / path.name
        yield made
        check_is_free(path)  # somebody may have been quicker
        os.replace(made, path)
        sync_directory(path.parent)


def check_is_free(path: Path) -> None:
    """Raise InputError where there is a file already, or the log of an earlier library's."""
    # SQLite would replay a write-ahead log that an earlier library left into the new one.
    for taken in (path, path.with_name(f"{path.name}-wal")):
        if os.path.lexists(taken):
            raise InputError(
                f"there is a file {taken} already, and a new library overwrites nothing; "
                "open that library, move the file away, or give another path"
            )


RESTORE_FILE = "restore the file from what `maskvote-server backup` wrote"
RESTORE = f"{RESTORE_FILE}, or create a new library"

PERMIT = "allow this user to write the file and its directory, then try again"
WAIT = "wait for the process that keeps it locked, or end it, then try again"

RULES = {
    "SQLITE_FULL": ("its disk is full", "free some space, then try again"),
    "SQLITE_READONLY": ("it may not be written", PERMIT),
    "SQLITE_CANTOPEN": ("it cannot be opened", PERMIT),
    "SQLITE_PERM": ("it may not be opened", PERMIT),
    "SQLITE_BUSY": ("it is locked", WAIT),
    "SQLITE_LOCKED": ("it is locked", WAIT),
    "SQLITE_IOERR": ("its disk fails", "check the disk and its space, then try again"),
    "SQLITE_CORRUPT": ("it is damaged", RESTORE),
    "SQLITE_NOTADB": ("it does not start as an SQLite file does", RESTORE),
}
"""SQLite's primary error -> what is wrong with the file, and what to do about it."""

OTHER = ("it does not hold the tables of a library", RESTORE)


class DamagedRow(Exception):
    """A row that is not as it was written: which, and what to do. See `reported`."""


@contextmanager
def reported(path: Path) -> Iterator[None]:
    """Errors of rows, the database or the file system as LibraryError: the file, what is wrong with it,
    what to do.

    What was committed before is intact, and the library goes on once the cause is gone.
    """
    try:
        yield
    except DamagedRow as damage:
        raise DamagedError(f"the library {path}: {damage}") from damage
    except (sqlalchemy.exc.DBAPIError, sqlite3.Error) as error:
        cause = error.orig if isinstance(error, sqlalchemy.exc.DBAPIError) else error
        name = getattr(cause, "sqlite_errorname", "")
        wrong, action = RULES.get("_".join(name.split("_")[:2]), OTHER)
        raise LibraryError(f"the library {path}: {wrong} ({cause}); {action}") from error
    except OSError as error:
        raise LibraryError(
            f"the library {path}: the system refuses it ({error.strerror}); "
            "check its path, its permissions and its disk, then try again"
        ) from error


def check_is_file(path: Path) -> None:
    """Tell what is no file, or an empty one, from a damaged one: SQLite takes the latter for a database.

    Without opening it: to close it would give up the locks that this process has on it, and another one
    that ends then takes the log away, with what was committed last.
    """
    if not path.exists():
        raise LibraryError(f"there is no library {path}; create it, or check the path")
    if not path.is_file() or path.stat().st_size == 0:
        raise LibraryError(f"{path} is no library but a directory, or empty; {RESTORE}")
