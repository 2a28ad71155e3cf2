"""Entries in a file, from one library to another; the format is in protos/operators.proto."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from common.errors import InputError
from common.files import reading, writing
from common.proto_codec import DIGEST_BYTES, MAX_MESSAGE_BYTES
from common.structure import Structure
from server.entries import Entry
from server.operator_codec import decode_import, encode_entry

MAGIC = b"maskvote entries 1\n"
END = b"\0"
"""The length of an entry that there is not: its message is never empty."""


def write_entries(path: Path, entries: Iterable[Entry]) -> int:
    """Write a file of entries, whole or not at all; how many they were. InputError if it cannot be."""
    digest, count = hashlib.sha256(), 0
    with writing(path) as file:

        def put(data: bytes) -> None:
            digest.update(data)
            file.write(data)

        put(MAGIC)
        for entry in entries:
            message = encode_entry(entry)
            put(_varint(len(message)) + message)
            count += 1
        put(END)
        file.write(digest.digest())
    return count


def count_entries(path: Path) -> int:
    """How many entries a file holds; all of it is read. InputError if it is cut short or damaged."""
    with reading(path) as file:
        return sum(1 for _ in _messages(file))


def read_entries(path: Path, structure: Structure) -> Iterator[Entry]:
    """The entries of a file, one by one, for a library of this structure.

    InputError where the file or an entry breaks a rule, MismatchError for an entry of another structure.
    """
    with reading(path) as file:
        for message in _messages(file):
            yield decode_import(message, structure)


def _messages(file: BinaryIO) -> Iterator[bytes]:
    """The messages of a file of entries; whether its sha256 is right shows after the last one."""
    digest, count = hashlib.sha256(), 0

    def take(size: int) -> bytes:
        data = file.read(size)
        if len(data) < size:
            raise InputError(f"{file.name} is cut short after {count} entries; copy or export it again")
        digest.update(data)
        return data

    if file.read(len(MAGIC)) != MAGIC:
        raise InputError(f"{file.name} is no file of entries; give one that `export` wrote")
    digest.update(MAGIC)
    while size := _read_varint(take):
        if size > MAX_MESSAGE_BYTES:
            raise InputError(
                f"{file.name} is damaged: its entry {count + 1} has {size:,} bytes, at most "
                f"{MAX_MESSAGE_BYTES:,} are allowed; copy or export it again"
            )
        yield take(size)
        count += 1
    if file.read(DIGEST_BYTES + 1) != digest.digest():
        raise InputError(
            f"{file.name} is damaged: its {count} entries do not have the sha256 at its end; copy or "
            "export it again"
        )


def _varint(number: int) -> bytes:
    groups = bytearray()
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    groups.append(number)
    return bytes(groups)


def _read_varint(take: Callable[[int], bytes]) -> int:
    number = 0
    for shift in range(0, 35, 7):
        group = take(1)[0]
        number |= (group & 0x7F) << shift
        if group <= 0x7F:
            break
    return number
