"""The library's file: how it is connected to, and the one place where its errors become LibraryError."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import sqlalchemy
from sqlalchemy import Connection, Engine, QueuePool

from common.errors import LibraryError

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
    uri = f"file:{quote(str(path.absolute()))}?mode={'rwc' if create else 'rw'}"

    def connection() -> sqlite3.Connection:
        return sqlite3.connect(
            uri,
            uri=True,
            timeout=BUSY_TIMEOUT_SECONDS,
            check_same_thread=False,  # the pool hands connections from thread to thread
            isolation_level=None,  # transactions begin where `begin` says, not at the first INSERT
        )

    engine = sqlalchemy.create_engine(
        "sqlite://", creator=connection, poolclass=QueuePool, max_overflow=-1
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
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


RESTORE = "restore the file from a backup, or create a new library"

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
    "SQLITE_NOTADB": ("it is damaged", RESTORE),
}
"""SQLite's primary error -> what is wrong with the file, and what to do about it."""

OTHER = ("it does not hold the tables of a library", RESTORE)


@contextmanager
def reported(path: Path) -> Iterator[None]:
    """Errors of the database or the file system as LibraryError: the file, what is wrong, what to do.

    What was committed before is intact, and the library goes on once the cause is gone.
    """
    try:
        yield
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


def check_is_database(path: Path) -> None:
    """Tell a missing or foreign file from a damaged one: SQLite takes an empty file for a database."""
    try:
        with open(path, "rb") as file:
            start = file.read(16)
    except FileNotFoundError as error:
        raise LibraryError(f"there is no library {path}; create it, or check the path") from error
    if start != b"SQLite format 3\0":
        raise LibraryError(f"{path} is no library: it does not start as an SQLite file does; {RESTORE}")


def sync_directory(path: Path) -> None:
    """Put the names of a directory's files on the disk: a file that was moved there stays."""
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
