"""Writers that come at the same time share one transaction, and the sync of the disk that ends it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager
from threading import Event, Lock
from typing import Any, TypeVar, cast

from sqlalchemy import Connection

from common.errors import LibraryError

Result = TypeVar("Result")

MAX_SHARED = 256
"""Changes in one transaction: the first of them waits for all."""


class WriteQueue:
    """Makes changes in transactions that `begin` begins: one after the other, in the order they come.

    Whoever finds nobody at work leads: it makes all changes that wait by then, and hands the lead on.
    One change that fails is undone alone; where the transaction fails, all in it do.
    """

    def __init__(self, begin: Callable[[], AbstractContextManager[Connection]]) -> None:
        self._begin = begin
        self._lock = Lock()
        self._waiting: list[_Change] = []
        self._is_led = False

    def write(self, change: Callable[[Connection], Result]) -> Result:
        """What a change returns, once its transaction is committed; raises what it raises."""
        own = _Change(change)
        with self._lock:
            self._waiting.append(own)
            leads, self._is_led = not self._is_led, True
        if not leads:
            own.turn.wait()
        if not own.is_over:
            self._lead()
        return own.outcome()

    def _lead(self) -> None:
        with self._lock:
            shared = self._waiting[:MAX_SHARED]
            del self._waiting[:MAX_SHARED]
        try:
            self._make(shared)
        finally:
            with self._lock:
                following = self._waiting[:1]
                self._is_led = bool(following)
            for change in (*shared, *following):
                change.turn.set()

    def _make(self, shared: list[_Change]) -> None:
        try:
            with self._begin() as connection:
                for change in shared:
                    change.make(connection)
        except Exception as error:
            for change in shared:
                change.error = error
        except BaseException:
            # The leader is being ended; the others' threads are not.
            for change in shared:
                change.error = LibraryError("the write was given up, as its thread is ended; repeat it")
            raise
        finally:
            for change in shared:
                change.is_over = True


class _Change:
    """One change that waits, and what came of it."""

    def __init__(self, change: Callable[[Connection], Any]) -> None:
        self._change = change
        self._result: Any = None
        self.error: Exception | None = None
        self.is_over = False
        self.turn = Event()
        """Set once this is over, or its writer is to lead."""

    def make(self, connection: Connection) -> None:
        """Make it within a transaction; if it fails, keep its error and undo it alone."""
        database = database_of(connection)
        database.execute("SAVEPOINT change")
        try:
            self._result = self._change(connection)
        except Exception as error:
            if not database.in_transaction:
                raise  # SQLite has undone all of it, as it does when the disk is full
            database.execute("ROLLBACK TO change")
            self.error = error
        database.execute("RELEASE change")

    def outcome(self) -> Any:
        """What the change returned; raises its error."""
        if self.error is not None:
            raise self.error
        return self._result


def database_of(connection: Connection) -> sqlite3.Connection:
    """SQLite's own connection, for statements that are not worth what SQLAlchemy adds to each."""
    return cast(sqlite3.Connection, connection.connection.dbapi_connection)
