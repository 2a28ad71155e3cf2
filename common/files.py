"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from common.errors import InputError
from common.system_errors import ADVICE

Data = bytes | bytearray | memoryview


def write_whole(path: Path, *parts: Data, private: bool = False) -> None:
    """Write a file of these parts so that it is there whole or not at all.

    Only this user can read it if it is `private`. InputError where it cannot be written.
    """
    with writing(path, private=private) as file:
        for part in parts:
            file.write(part)


@contextmanager
def writing(path: Path, *, private: bool = False) -> Iterator[BinaryIO]:
    """A file, open for writing; it is there, whole, once this is left without an error, or not at all.

    Only this user can read it if it is `private`. InputError where it cannot be written.
    """
    mode = 0o600 if private else 0o666
    path = Path(path)
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        try:
            with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_directory(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror or error}); free some space, or write elsewhere"
        ) from error


def check_readable(path: Path) -> None:
    """Raise InputError unless there is a file that can be read. It is not opened."""
    try:
        path.stat()
    except OSError as error:
        why = error.strerror or str(error)
    else:
        why = "it is a directory" if path.is_dir() else ""
        if not why and not os.access(path, os.R_OK):
            why = "it may not be read by you"
    if why:
        raise InputError(f"{path} cannot be read ({why}); check the path")


def check_directory(path: Path) -> None:
    """Raise InputError unless there is a directory."""
    if not path.is_dir():
        raise InputError(f"{path} is not a directory; check the path")


def check_writable(path: Path) -> None:
    """Raise InputError unless a file can be written here, as far as can be told without writing it."""
    if path.is_dir():
        raise InputError(f"{path} cannot be written (it is a directory); give the name of a file")
    if not path.parent.is_dir():
        raise InputError(
            f"{path} cannot be written (there is no directory {path.parent}); make it, or write elsewhere"
        )
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise InputError(
            f"{path} cannot be written (you may not write into {path.parent}); write elsewhere"
        )


def read_whole(path: Path) -> memoryview:
    """The bytes of a file, as of `rest_of`. InputError where it cannot be read."""
    with reading(path) as file:
        return rest_of(file)


@contextmanager
def reading(path: Path) -> Iterator[BinaryIO]:
    """The file, open for reading. InputError where it cannot be read, then or later."""
    try:
        with Path(path).open("rb") as file:
            yield file
    except OSError as error:
        advice = ADVICE.get(error.errno or 0, "check the path")
        raise InputError(f"{path} cannot be read ({error.strerror or error}); {advice}") from error


def rest_of(file: BinaryIO) -> memoryview:
    """The bytes of a file from where it stands, read once into memory that may be written to.

    Never mapped: what happens to the file later changes nothing. InputError if it changes meanwhile.
    """
    size = max(0, os.fstat(file.fileno()).st_size - file.tell())
    data = np.empty(size, dtype=np.uint8).data
    read = file.readinto(data) if size else 0  # type: ignore[attr-defined]
    if read != size or file.read(1):
        raise InputError(f"{file.name} is not the {size:,} bytes that it was; read it when it is written")
    return data


def sync_directory(path: Path) -> None:
    """Put the names of a directory's files on the disk: a file that was moved there stays."""
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
