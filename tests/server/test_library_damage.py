"""What is damaged, full, locked or forbidden is told, and nothing false is served."""

import os
import random
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from library_tasks import adapt, adapt_all, change, clean_processes, contribution, request_id
from sqlalchemy import create_engine

from common.errors import LibraryError
from common.exchange import Receipt
from server.library import Library

NOBODY = 65534


# Damage is told, and nothing false is served


def overwritten(path: Path, start: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(start)
        file.write(data)


FIX_IT = "restore the file|create it|allow this user|use the version|check its path"


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda path: path.unlink(), id="missing"),
        pytest.param(lambda path: path.write_bytes(b""), id="empty"),
        pytest.param(lambda path: path.write_text("keep ratio, accuracy\n" * 99), id="text"),
        pytest.param(lambda path: (path.unlink(), path.mkdir()), id="directory"),
        pytest.param(lambda path: overwritten(path, 0, bytes(100)), id="magic overwritten"),
        pytest.param(lambda path: overwritten(path, 16, b"\xff" * 84), id="header overwritten"),
        pytest.param(lambda path: overwritten(path, 4096, b"\xa5" * 4096), id="page overwritten"),
        pytest.param(lambda path: os.truncate(path, 3 * 4096), id="truncated"),
        pytest.param(lambda path: os.truncate(path, 50), id="truncated in the header"),
        pytest.param(lambda path: change(path, "DROP TABLE header"), id="no library"),
        pytest.param(lambda path: change(path, "DELETE FROM header"), id="no header row"),
        pytest.param(lambda path: change(path, "UPDATE header SET structure = '{}'"), id="structure"),
        pytest.param(lambda path: change(path, "UPDATE header SET probe = x'00'"), id="probe"),
        pytest.param(
            lambda path: change(path, "UPDATE header SET structure = replace(structure, ':5,', ':6,')"),
            id="a number that no digest covers",
        ),
        pytest.param(lambda path: change(path, "UPDATE removals SET removed = 0"), id="removals"),
        pytest.param(lambda path: change(path, "UPDATE header SET format = 3"), id="of the future"),
    ],
)
def test_a_file_that_is_no_sound_library_is_refused_in_one_sentence(stocked, damage):
    damage(stocked)
    with pytest.raises(LibraryError, match=FIX_IT) as refusal:
        Library.open(stocked)
    assert str(stocked) in str(refusal.value)
    assert not list(stocked.parent.glob(".*"))


def test_a_flipped_bit_anywhere_is_told_or_changes_nothing_that_is_served(stocked_file, path):
    """Half of the bits are in the pages behind the probe, which fills most of the file."""
    sound = stocked_file.read_bytes()
    with Library.open(stocked_file) as library:
        true_entries = {entry.entry: entry for entry in library.entries()}
        true_removals = library.removals()
        true_assignment = library.assignment_of(request_id(5))
    place = random.Random(0)
    told = 0
    for round_ in range(150):
        at = place.randrange(len(sound) - 8 * 4096 if round_ % 2 else 0, len(sound))
        flipped = sound[at] ^ 1 << place.randrange(8)
        path.write_bytes(sound[:at] + bytes([flipped]) + sound[at + 1 :])
        try:
            with Library.open(path) as library:
                damaged, served = set(library.damaged), library.entries()
                assert library.removals() == true_removals
                if request_id(5) not in damaged:
                    assert library.assignment_of(request_id(5)) == true_assignment
        except LibraryError:
            told += 1
            continue
        told += bool(damaged)
        assert all(entry == true_entries[entry.entry] for entry in served)
        assert {entry.entry for entry in served} == set(true_entries) - damaged
    assert told > 50


def test_a_damaged_task_is_listed_and_not_served_and_the_rest_works(stocked, offer):
    """The third mask loses a bit, the sixth task's name is no text any more."""
    change(stocked, "UPDATE tasks SET mask = x'01' || substr(mask, 2) WHERE position = 3")
    change(stocked, "UPDATE tasks SET contributor = CAST(x'ff' AS TEXT) WHERE position IS NULL")
    with Library.open(stocked) as library:
        assert library.damaged == (request_id(2), request_id(5))
        assert [entry.position for entry in library.entries()] == [1, 2, 4, 5]
        for serve in (library.entry, library.assignment_of):
            with pytest.raises(LibraryError, match=f"{request_id(2)} is damaged"):
                serve(request_id(2))
        with pytest.raises(LibraryError, match=f"{request_id(5)} is damaged"):
            library.record(contribution(offer, 5))
        assert adapt(library, 6).entries == len(library) == 6


# A full disk, a file that may not be written, a lock that stays


@pytest.mark.parametrize(
    ("hinder", "release", "told"),
    [
        ("PRAGMA max_page_count = 1", "PRAGMA max_page_count = 1000000", "disk is full.*free some space"),
        ("PRAGMA query_only = ON", "PRAGMA query_only = OFF", "may not be written.*allow this user"),
    ],
    ids=["disk full", "read-only"],
)
def test_what_cannot_be_written_is_told_and_works_once_it_can(
    stocked, offer, at_checkout, hinder, release, told
):
    """SQLite's own errors: it refuses pages beyond a count, and changes on a query-only connection."""
    with Library.open(stocked) as library:
        kept = library.entries()
        at_checkout[:] = [hinder]
        with pytest.raises(LibraryError, match=told) as refusal:
            adapt_all(library, range(6, 40))
        assert str(stocked) in str(refusal.value)
        held = library.entries()
        assert held[: len(kept)] == kept
        at_checkout[:] = [release]
        adapt_all(library, range(6, 40))
        assert library.entries()[: len(held)] == held
        assert len(library) == 5 + 34
    with Library.open(stocked) as library:
        assert (len(library), library.damaged) == (39, ())


def test_a_lock_that_another_process_keeps_is_told(library, path, offer, at_checkout):
    at_checkout.append("PRAGMA busy_timeout = 1")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(LibraryError, match=r"locked.*try again"):
        adapt(library, 1)
    other.execute("COMMIT")
    other.close()
    assert adapt(library, 1).entries == 1


def refusal_as_nobody(use: Callable[[Path], object], path: Path, answer: Connection) -> None:
    """Sends what the library tells a user who may do only what a file's mode says."""
    create_engine("sqlite://").connect().close()  # loaded now: nobody may not read the modules
    if os.geteuid() == 0:
        os.setuid(NOBODY)
    try:
        answer.send(f"done: {use(path)}")
    except LibraryError as error:
        answer.send(str(error))


def opened(path: Path) -> int:
    with Library.open(path) as library:
        return len(library)


def adapted(path: Path) -> Receipt:
    with Library.open(path) as library:
        return adapt(library, 6)


@pytest.mark.parametrize(
    ("use", "mode"), [(opened, 0o000), (adapted, 0o444)], ids=["unreadable", "read-only"]
)
def test_a_file_without_permission_is_refused_and_left_as_it_was(stocked_file, use, mode):
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "library.db"
        shutil.copy(stocked_file, path)
        path.chmod(mode)
        os.chmod(directory, 0o755)
        reader, writer = clean_processes.Pipe(duplex=False)
        process = clean_processes.Process(target=refusal_as_nobody, args=(use, path, writer))
        process.start()
        writer.close()
        told = reader.recv()
        process.join()
        assert str(path) in told
        assert "permission" in told or "allow this user" in told
        path.chmod(0o600)
        assert path.read_bytes() == stocked_file.read_bytes()
