"""Tables on standard output. None is narrower than its content: no cell is ever cut."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

NARROWEST_WRAPPED = 24
"""Columns of the terminal that a column of the table has at least, if its words wrap."""
UNLIMITED = 100_000
"""A width that no table reaches."""
ASSUMED_WIDTH = 80
"""Of a terminal that does not tell its width."""

Row = Sequence[str]


def show(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    caption: str | None = None,
) -> None:
    """Print a table: numbers to the right, words to the left; None is an empty cell.

    Where stdout is no terminal, the table has its full width. In a terminal that is too narrow for it,
    the words of its widest column wrap. If that is not enough, each row becomes lines of field and value.
    """
    width, console = terminal_width(), Console(width=UNLIMITED)
    columns = [printable(column) for column in columns]
    cells = [[printable("" if cell is None else str(cell)) for cell in row] for row in rows]
    for part in folded(printable(title), width):
        _print(console, Text(part, style="bold"))
    table = _table(columns, cells, {})
    if width is not None and _width(console, table) > width:
        narrower = _wrapped(console, columns, cells, width)
        if narrower is None:
            for record_line in _records(columns, cells, width):
                _print(console, record_line)
        else:
            console.print(narrower)
    else:
        console.print(table)
    for part in folded(printable(caption), width) if caption is not None else ():
        _print(console, Text(part, style="dim"))


def terminal_width() -> int | None:
    """Columns of the terminal that stdout is; None where it is none, and lines may be of any length."""
    if not sys.stdout.isatty():
        return None
    return os.get_terminal_size(sys.stdout.fileno()).columns or ASSUMED_WIDTH


def printable(text: str) -> str:
    """A text as it may be printed on stdout: characters that it does not have are escaped, as are those
    that order a terminal about. Lines stay lines.
    """
    encoding = sys.stdout.encoding or "utf-8"
    text = text.encode(encoding, "backslashreplace").decode(encoding)
    return "".join(
        character if character.isprintable() or character == "\n" else ascii(character)[1:-1]
        for character in text
    )


def folded(text: str, width: int | None) -> list[str]:
    """The lines of a text, broken between words so that each fits into `width` columns of a terminal.

    A longer word stays in one piece, for the terminal to wrap: so it can be copied. None breaks nothing.
    """
    lines = text.split("\n")
    return lines if width is None else [part for line in lines for part in _parts(line, width)]


def _parts(line: str, width: int) -> Iterator[str]:
    part, *words = line.split(" ")
    for word in words:
        if cell_len(part) + 1 + cell_len(word) > width:
            yield part
            part = word
        else:
            part = f"{part} {word}"
    yield part


def _table(columns: Sequence[str], rows: Sequence[Row], widths: dict[int, int]) -> Table:
    """The table; the columns in `widths` wrap their words to have that width."""
    table = Table()
    for index, column in enumerate(columns):
        cells = [row[index] for row in rows]
        numeric = any(cells) and all(map(_is_numeric, cells))
        width = widths.get(index)
        table.add_column(
            Text(column), justify="right" if numeric else "left", no_wrap=width is None, width=width
        )
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _width(console: Console, table: Table) -> int:
    return Measurement.get(console, console.options, table).maximum


def _wrapped(console: Console, columns: Sequence[str], rows: Sequence[Row], width: int) -> Table | None:
    """The table with its widest column wrapped so that it fits; None where that has too long a word."""
    values = [[column, *(row[index] for row in rows)] for index, column in enumerate(columns)]
    widest = [max(cell_len(line) for value in column for line in value.split("\n")) for column in values]
    index = max(range(len(columns)), key=widest.__getitem__)
    left = widest[index] - (_width(console, _table(columns, rows, {})) - width)
    longest_word = max((cell_len(word) for value in values[index] for word in value.split()), default=0)
    return None if left < max(longest_word, NARROWEST_WRAPPED) else _table(columns, rows, {index: left})


def _records(columns: Sequence[str], rows: Sequence[Row], width: int) -> Iterator[Text]:
    """Each row as lines of field and value.

    A table of two columns has fields and values already: it stays one list.
    """
    if len(columns) == 2:
        yield from _fields([(row[0], row[1]) for row in [columns, *rows] if any(row)], width)
        return
    for row in rows:
        yield from _fields(list(zip(columns, row, strict=True)), width)
        yield Text("")


def _fields(fields: Sequence[tuple[str, str]], width: int) -> Iterator[Text]:
    """Lines of field and value: values one below the other, below their field where that is too long."""
    lengths = [cell_len(name) for name, _ in fields]
    indent = 2 + max((length for length in lengths if length <= width // 3), default=0)
    for name, value in fields:
        begin = Text(name, style="bold")
        if begin.cell_len + 2 > indent:
            yield begin
            begin = Text("")
        first, *others = folded(value, width - indent)
        yield Text.assemble(begin, " " * (indent - begin.cell_len) if first else "", first)
        for line in others:
            yield Text(" " * indent + line)


def _print(console: Console, line: Text) -> None:
    console.print(line, highlight=False, soft_wrap=True)


def _is_numeric(cell: str) -> bool:
    return re.fullmatch(r"([-+]?[\d,.]*(%|x| ± [\d.]+|-[\d,.]+)?)?", cell) is not None
