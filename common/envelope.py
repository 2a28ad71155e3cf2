"""Envelope: one message of the wire in a file, with its payload, for devices that are never online."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from common.errors import InputError
from common.files import Data, reading, rest_of, write_whole

MAGIC = b"maskvote1\n"
LENGTHS = struct.Struct("<QQ")
"""Bytes of the message, bytes of the payload: little-endian, after the magic line."""


def seal(path: Path, message: bytes, payload: Data = b"") -> None:
    """Write a message and its payload to a file: whole, or not at all."""
    write_whole(path, MAGIC, LENGTHS.pack(len(message), len(payload)), message, payload)


def unseal(path: Path) -> tuple[bytes, memoryview]:
    """The message and payload of such a file. InputError if it is none, or cut short.

    The payload has memory of its own: a network in it is used where it lies.
    """
    body = len(MAGIC) + LENGTHS.size
    with reading(path) as file:
        head = file.read(body)
        if not head.startswith(MAGIC) or len(head) < body:
            raise InputError(f"{path} is no maskvote file; give one that maskvote wrote")
        message, payload = LENGTHS.unpack_from(head, len(MAGIC))
        size = os.fstat(file.fileno()).st_size
        if size != body + message + payload:
            raise InputError(
                f"{path} has {size:,} bytes, its header says {body + message + payload:,}; copy it again"
            )
        return file.read(message), rest_of(file)
