"""A pseudo-terminal of a given width, for what is printed where the user has a terminal."""

import fcntl
import os
import pty
import re
import struct
import sys
import termios
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO

from rich.cells import cell_len

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def printed_in_terminal(columns: int, what: Callable[[], object]) -> str:
    """What a function prints on stdout where that is a terminal of so many columns, without colours."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    parts: list[bytes] = []

    def read() -> None:
        while part := _read(ours):
            parts.append(part)

    reader, before = threading.Thread(target=read), sys.stdout
    reader.start()
    try:
        with os.fdopen(theirs, "w", encoding="utf-8") as sys.stdout:
            what()
    finally:
        sys.stdout = before
        reader.join()
        os.close(ours)
    return ESCAPES.sub("", b"".join(parts).decode()).replace("\r\n", "\n")


def _read(file: int) -> bytes:
    try:
        return os.read(file, 65_536)
    except OSError:  # so Linux tells that the other end is closed
        return b""


def narrow(what: Callable[[], object], columns: int = 80) -> str:
    """What a function prints in a terminal of so many columns, where no cell of a table may be cut.

    AssertionError unless every word of every cell that it prints where there is no terminal is whole
    there, and each line of a table fits, but for one with a word that cannot.
    """
    with redirect_stdout(StringIO()) as output:
        what()
    full = [line.strip("│") for line in output.getvalue().splitlines() if line.startswith("│")]
    assert full, "it prints no table"
    printed = printed_in_terminal(columns, what)
    lacking = Counter(word for line in full for word in line.split()) - Counter(printed.split())
    del lacking["│"]
    assert not lacking, printed
    for line in set(printed.splitlines()) - set(output.getvalue().splitlines()):
        longest = max(map(cell_len, line.split()), default=0)
        assert cell_len(line) <= columns or longest > 2 * columns // 3 - 2, line
    return printed
