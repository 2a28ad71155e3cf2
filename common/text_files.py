"""Small text files that people made, with or without the marks that some editors begin with."""

from __future__ import annotations

import codecs
from pathlib import Path

from common.errors import InputError
from common.files import reading

MAX_BYTES = 16 * 1024**2
"""Far more than all authorities of a system take."""


def read_small(path: Path) -> bytes:
    """The bytes of a file, which may be a pipe. InputError where it cannot be read, or is too large."""
    with reading(path) as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise InputError(f"{path} has more than {MAX_BYTES:,} bytes; check the path")
    return data


def decoded(data: bytes) -> str:
    """The text of these bytes: UTF-8, or UTF-16 with a byte-order mark, which is no part of it.

    Bytes that are no such text become U+FFFD.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", errors="replace")
    return data.decode("utf-8-sig", errors="replace")
