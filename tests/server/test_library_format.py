"""Formats: a library of an earlier one is brought to this one, whole or not at all."""

import json
import os
import signal
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from library_tasks import WEIGHTS_DIGEST, adapt, adapt_all, clean_processes, request_id, stored_assignment
from sqlalchemy import Engine, event

from common.errors import LibraryError
from server import tokens
from server.library import Library
from server.library_schema import ASKED, STANDING, seal

FORMAT_1 = """
CREATE TABLE header (
    id INTEGER NOT NULL CHECK (id = 1), format INTEGER NOT NULL, created TEXT NOT NULL,
    backbone TEXT NOT NULL, weights_digest TEXT NOT NULL, structure TEXT NOT NULL,
    structure_digest TEXT NOT NULL, probe BLOB NOT NULL, probe_digest TEXT NOT NULL,
    sha256 TEXT NOT NULL, PRIMARY KEY (id)
);
CREATE TABLE tasks (
    id TEXT NOT NULL, method TEXT NOT NULL, contributor TEXT NOT NULL, classes INTEGER NOT NULL,
    means BLOB NOT NULL, counts BLOB NOT NULL, neighbours TEXT NOT NULL, budget TEXT, origin TEXT,
    target TEXT, rounds INTEGER, assigned_mask BLOB, asked_sha256 TEXT NOT NULL, position INTEGER,
    recorded TEXT, mask BLOB, accuracy_before REAL, accuracy_after REAL, iterations INTEGER,
    outcome_sha256 TEXT NOT NULL, PRIMARY KEY (id), UNIQUE (position)
);
"""


@pytest.fixture
def contents(offer, tmp_path):
    """What the library of format 1 holds: five entries, and a sixth task that is assigned."""
    path = tmp_path / "of-today.db"
    with Library.create(path, offer, WEIGHTS_DIGEST) as library:
        adapt_all(library, range(5))
        library.assigned(stored_assignment(offer, 5))
        yield library


@pytest.fixture
def old(contents, path) -> Path:
    """A file as format 1 was, with these contents."""
    connection = sqlite3.connect(path)
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA journal_mode = WAL")
    connection.executescript(FORMAT_1)
    connection.execute("ATTACH ? AS today", (str(contents.path),))
    with connection:
        for table in ("header", "tasks"):
            connection.execute(f"INSERT INTO main.{table} SELECT * FROM today.{table}")
        header = dict(connection.execute("SELECT * FROM main.header").fetchone()) | {"format": 1}
        connection.execute("UPDATE main.header SET format = 1, sha256 = ?", (seal(header, STANDING),))
    connection.close()
    return path


def tables_of(path: Path) -> tuple[int, set[str]]:
    """The format that is written, and the tables."""
    connection = sqlite3.connect(path)
    (written,) = connection.execute("SELECT format FROM header").fetchone()
    names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")}
    connection.close()
    return written, names


def assert_same(library: Library, contents: Library) -> None:
    assert library.entries() == contents.entries()
    assert library.assignment_of(request_id(5)) == contents.assignment_of(request_id(5))
    assert library.weights_digest == contents.weights_digest
    assert library.offer.structure.to_json() == contents.offer.structure.to_json()
    assert library.offer.probe.digest == contents.offer.probe.digest
    assert library.damaged == ()


def test_a_library_of_format_1_opens_with_everything_and_learns_what_format_2_can(old, contents):
    assert tables_of(old) == (1, {"header", "tasks"})
    with Library.open(old) as library:
        assert_same(library, contents)
        assert adapt(library, 6).entries == 6
        library.remove(request_id(1), "boss", "a fish")
        token = tokens.add(library, "kitchen", "device")
    assert tables_of(old) == (2, {"header", "tasks", "removals", "tokens"})
    with Library.open(old) as library:
        assert library.entries()[:5] == contents.entries()
        assert library.removal_of(request_id(1)) is not None
        assert tokens.identify(library, token) == tokens.Caller("kitchen", "device")


def opened_and_killed(path: Path) -> None:
    """Dies when all that makes it format 2 is written, and not yet committed."""
    event.listen(Engine, "commit", lambda connection: os.kill(os.getpid(), signal.SIGKILL))
    Library.open(path)


def test_a_death_on_the_way_leaves_format_1_and_the_next_goes_the_whole(old, contents):
    for _ in range(2):
        process = clean_processes.Process(target=opened_and_killed, args=(old,))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert tables_of(old) == (1, {"header", "tasks"})
    with Library.open(old) as library:
        assert_same(library, contents)


def test_several_that_open_it_at_once_all_find_format_2(old, contents):
    with ThreadPoolExecutor(8) as pool:
        libraries = list(pool.map(Library.open, [old] * 8))
    for library in libraries:
        assert_same(library, contents)
        library.close()


def test_one_that_may_not_be_written_is_told_with_what_it_is_for(old, at_checkout):
    before = old.read_bytes()
    at_checkout.append("PRAGMA query_only = ON")
    with pytest.raises(LibraryError, match=r"format 1 .*may not be written.*allow this user") as refusal:
        Library.open(old)
    assert str(old) in str(refusal.value)
    assert old.read_bytes() == before


def test_a_damaged_header_is_told_and_not_sealed_anew(old):
    connection = sqlite3.connect(old)
    with connection:
        connection.execute("UPDATE header SET weights_digest = 'cd'")
    connection.close()
    with pytest.raises(LibraryError, match="header is damaged"):
        Library.open(old)
    assert tables_of(old) == (1, {"header", "tasks"})


@pytest.mark.parametrize("written", ["0", "3", "'two'", "1.5", "x'02'"])
def test_a_format_that_is_not_known_is_refused(contents, path, written):
    contents.close()
    contents.path.rename(path)
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(f"UPDATE header SET format = {written}")
    connection.close()
    with pytest.raises(LibraryError, match="use the version that wrote it"):
        Library.open(path)


def test_a_request_of_when_no_device_could_wait_is_one_that_does_not(contents):
    """Its budget has no such key, and its row is what was sealed then."""
    contents.close()
    connection = sqlite3.connect(contents.path)
    connection.row_factory = sqlite3.Row
    row = dict(connection.execute("SELECT * FROM tasks WHERE id = ?", (request_id(5),)).fetchone())
    budget = json.loads(row["budget"])
    assert budget.pop("wait_seconds") == 0
    row["budget"] = json.dumps(budget)
    with connection:
        connection.execute(
            "UPDATE tasks SET budget = ?, asked_sha256 = ? WHERE id = ?",
            (row["budget"], seal(row, ASKED), request_id(5)),
        )
    connection.close()
    with Library.open(contents.path) as library:
        found = library.assignment_of(request_id(5))
        assert found == stored_assignment(library.offer, 5)
        assert found.description.budget.wait_seconds == 0
