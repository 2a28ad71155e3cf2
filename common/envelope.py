"""Envelope: one message of the wire in a file, with its payload, for devices that are never online."""

from __future__ import annotations

import struct
from pathlib import Path

from common.errors import InputError
from common.files import read_whole, write_whole

MAGIC = b"maskvote1\n"
LENGTHS = struct.Struct("<QQ")
"""Bytes of the message, bytes of the payload: little-endian, after the magic line."""


def seal(path: Path, message: bytes, payload: bytes = b"") -> None:
    """Write a message and its payload to a file: whole, or not at all."""
    write_whole(path, b"".join((MAGIC, LENGTHS.pack(len(message), len(payload)), message, payload)))


def unseal(path: Path) -> tuple[bytes, bytes]:
    """The message and payload of such a file. InputError if it is none, or cut short."""
    data = read_whole(path)
    body = len(MAGIC) + LENGTHS.size
    if not data.startswith(MAGIC) or len(data) < body:
        raise InputError(f"{path} is no maskvote file; give one that maskvote wrote")
    message, payload = LENGTHS.unpack_from(data, len(MAGIC))
    if len(data) != body + message + payload:
        raise InputError(
            f"{path} has {len(data):,} bytes, its header says {body + message + payload:,}; copy it again"
        )
    return data[body : body + message], data[body + message :]
