"""Temporary files: where there is no room for them, that is told before anything slow."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile, gettempdir

from common.errors import InputError


@contextmanager
def temporary_directory() -> Iterator[Path]:
    """A new directory in the system's temporary one, removed with all that it holds when this is left.

    InputError where none can be made.
    """
    with ExitStack() as entered:
        try:
            name = entered.enter_context(TemporaryDirectory(prefix="maskvote-"))
        except OSError as error:
            raise _without_room(error) from error
        yield Path(name)


def check_room(*sizes: int) -> None:
    """Raise InputError unless files of so many bytes fit into the temporary directory together."""
    with ExitStack() as opened:
        try:
            for size in sizes:
                file = opened.enter_context(TemporaryFile())
                os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            raise _without_room(error, sum(sizes)) from error


def _without_room(error: OSError, size: int = 0) -> InputError:
    what = f"{size:,} bytes of temporary files" if size else "a temporary file"
    try:
        place = gettempdir()
    except OSError:  # its message names all that were tried
        place = "any temporary directory"
    return InputError(
        f"{what} cannot be written in {place} ({error.strerror or error}); free some space there, or let "
        "TMPDIR name another directory"
    )
