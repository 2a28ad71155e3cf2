"""Standard output and error: a character that they do not have is escaped, and a failed write is handled.

A command writes its results to stdout. Where that cannot be written the command ends: quietly if whoever
read it has left, as `| head` does, else with a sentence. What is written to stderr is for a person: where
that cannot be written the work goes on.
"""

from __future__ import annotations

import codecs
import errno
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from typing import Any, TextIO

from common.errors import InputError


class ReaderLeft(Exception):
    """Nobody reads stdout any more."""


@contextmanager
def guarded_streams() -> Iterator[None]:
    """Guard sys.stdout and sys.stderr: after one that failed, each write to stdout raises.

    It raises ReaderLeft where nobody reads any more, else InputError.

    Once a write to stderr failed, the others are dropped. When Python ends, neither fails any more.
    """
    before = sys.stdout, sys.stderr
    sys.stdout = _guarded(sys.stdout, _give_up)
    sys.stderr = _guarded(sys.stderr, lambda error: None)
    try:
        yield
    finally:
        with suppress(InputError, ReaderLeft):  # the command has told its own error
            sys.stdout.flush()
        sys.stdout, sys.stderr = before


def _give_up(error: OSError) -> None:
    if error.errno == errno.EPIPE:
        raise ReaderLeft from error
    raise InputError(
        f"standard output cannot be written ({error.strerror or error}); free some space, or write "
        "elsewhere"
    ) from error


def _guarded(stream: TextIO | None, failed: Callable[[OSError], None]) -> Any:
    if stream is None:
        # It was closed before Python began. A file that is opened later must not take its place.
        return open(os.devnull, "w")
    if isinstance(stream, TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return _Guarded(stream, failed)


class _Guarded:
    """A text stream whose failed writes are handled; everything else is as of the stream."""

    def __init__(self, stream: TextIO, failed: Callable[[OSError], None]) -> None:
        self._stream = stream
        self._failed = failed
        self._error: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @property
    def encoding(self) -> str | None:
        """That of the stream; of ASCII a superset, as click writes UTF-8 to a stream that says ASCII."""
        encoding = self._stream.encoding
        return "latin-1" if encoding and codecs.lookup(encoding).name == "ascii" else encoding

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, write: Callable[[], object]) -> None:
        # Once more for each write after the first that failed: click and others try with an empty one.
        if self._error is None:
            try:
                write()
            except OSError as error:
                self._error = error
                # What is still in its buffer would fail when Python ends, and change the exit status.
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)
        if self._error is not None:
            self._failed(self._error)
