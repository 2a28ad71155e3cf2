"""Backups: all that a library holds, of one moment, in a file that is there whole or not at all."""

import os
import shutil
import sqlite3
import stat
from pathlib import Path

import pytest
from library_tasks import adapt, adapt_all, request_id, stored_assignment

from common.errors import InputError, LibraryError
from server import library_backup, tokens
from server.library import Library
from server.library_backup import back_up


def content(path: Path) -> list[str]:
    """All that is in a file's tables."""
    connection = sqlite3.connect(path)
    try:
        return list(connection.iterdump())
    finally:
        connection.close()


@pytest.fixture
def busy(library, offer) -> Library:
    """Open, with entries, a removal, an unanswered request and a token: much of it in its log alone."""
    adapt_all(library, range(5))
    library.assigned(stored_assignment(offer, 5))
    library.remove(request_id(1), "boss", "it is a fish")
    tokens.add(library, "kitchen", "device")
    return library


@pytest.fixture
def backup(tmp_path) -> Path:
    (tmp_path / "elsewhere").mkdir()
    return tmp_path / "elsewhere" / "library.backup"


def test_a_backup_holds_everything_and_a_copied_file_does_not(busy, path, backup, tmp_path):
    assert back_up(busy, backup) == 5
    assert content(backup) == content(path)
    assert [file.name for file in backup.parent.iterdir()] == [backup.name]
    shutil.copy(path, tmp_path / "copied.db")
    assert content(tmp_path / "copied.db") != content(path)


def test_a_backup_goes_on_where_the_library_was(busy, backup, offer):
    back_up(busy, backup)
    with Library.open(backup) as restored:
        assert restored.header.row == busy.header.row
        assert restored.revision() == busy.revision()
        assert restored.entries() == busy.entries()
        assert restored.removal_of(request_id(1)) == busy.removal_of(request_id(1))
        assert restored.assignment_of(request_id(5)) == stored_assignment(offer, 5)
        assert tokens.tokens(restored) == tokens.tokens(busy)
        assert adapt(restored, 5).entries == 6


def test_what_is_written_meanwhile_is_not_in_it_and_does_not_hold_it_up(busy, path, backup, monkeypatch):
    """A page at a time, and whenever one is copied somebody writes: it never begins anew."""
    monkeypatch.setattr(library_backup, "PAGES", 1)
    before, told = content(path), []

    def write(done: int, total: int) -> None:
        told.append((done, total))
        if len(told) < 20:
            with Library.open(path) as other:
                adapt(other, 100 + len(told))

    assert back_up(busy, backup, write) == 5
    total = told[0][1]
    assert told == [(done, total) for done in range(1, total + 1)]
    assert total > 20
    assert content(backup) == before
    assert len(busy) == 5 + 19


def test_a_file_is_never_written_over(busy, path, backup):
    backup.write_text("somebody's")
    with pytest.raises(InputError, match=r"library\.backup already.*overwrites nothing"):
        back_up(busy, backup)
    assert backup.read_text() == "somebody's"
    with pytest.raises(InputError, match="overwrites nothing"):
        back_up(busy, path)


def test_a_backup_that_ends_early_leaves_nothing(busy, backup):
    def stop(*_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        back_up(busy, backup, stop)
    assert list(backup.parent.iterdir()) == []


def test_a_backup_into_no_directory_is_refused(busy, tmp_path):
    with pytest.raises(LibraryError, match=r"none/library\.backup.*check its path"):
        back_up(busy, tmp_path / "none" / "library.backup")


def test_whoever_may_not_read_a_library_may_not_read_its_backup(busy, path, backup):
    os.chmod(path, 0o600)
    back_up(busy, backup)
    assert stat.S_IMODE(backup.stat().st_mode) == 0o600
