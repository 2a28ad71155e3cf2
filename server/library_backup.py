"""A backup: a whole copy of a library's file, made while others read and write it."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from server.library import Library
from server.library_file import LibraryFile, appearing, reported
from server.library_rows import LAST_POSITION
from server.write_queue import database_of

PAGES = 2048
"""Pages of the file that are copied between two calls of `watch`: some megabytes."""


def back_up(library: Library, path: Path, watch: Callable[[int, int], None] | None = None) -> int:
    """Copy the library to a new file, as it is at this moment; how many entries are recorded in it.

    The copy is a library itself, with everything: tokens, removals and unanswered requests too. It is
    checked as a library is that is opened, appears whole or not at all, and may be read by whom the
    library's file may be. `watch` is called with pages copied and pages in all. InputError where there
    is a file already, LibraryError where the copy cannot be made.
    """
    with appearing(path) as made:
        _copy(library.file, made, path, watch)
        shutil.copymode(library.path, made)
        with Library.open(made) as copy:
            return len(copy)


def _copy(file: LibraryFile, made: Path, path: Path, watch: Callable[[int, int], None] | None) -> None:
    def tell(_status: int, remaining: int, total: int) -> None:
        if watch is not None:
            watch(total - remaining, total)

    with file.reading() as source, reported(path), closing(sqlite3.connect(made)) as copy:
        # Without an open transaction, SQLite begins anew whenever somebody has written meanwhile.
        source.execute(LAST_POSITION)
        database_of(source).backup(copy, pages=PAGES, progress=tell)
