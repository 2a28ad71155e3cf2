"""Download: a payload on its way into a file, that another process can go on with."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from common.errors import InputError, WeightsError
from common.files import read_whole
from common.grpc_codec import Announced, Resume

NAME = re.compile(r"(?P<name>probe|[0-9a-f]{32})\.(?P<sha256>[0-9a-f]{64})\.part")
"""Of a payload's file: what it is, the probe or a request's network, and the sha256 of the whole."""

READ_BYTES = 2**20

Progress = Callable[[int, int], None]
"""Called with the bytes that are there, and those of the whole."""


class DamagedDownload(WeightsError):
    """All bytes have come, and they are not those that were announced."""


class Download:
    """A payload in a directory, as far as it has come. `name` is "probe", or the request it is for.

    The file stays until `remove`, also once it is whole. InputError where it cannot be written or read.
    """

    def __init__(self, directory: Path, name: str, progress: Progress = lambda done, total: None) -> None:
        self._directory = directory
        self._name = name
        self._progress = progress
        found = partial_files(directory, name)
        self._file = _PartialFile(found[-1]) if found else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    @property
    def resume(self) -> Resume | None:
        """What is there, to go on from; None if nothing is."""
        return None if self._file is None else Resume(self._file.sha256, self._file.size)

    @property
    def size(self) -> int:
        """How many bytes are there."""
        return 0 if self._file is None else self._file.size

    def take(self, announced: Announced, offset: int, parts: Iterable[bytes]) -> None:
        """Append the parts of the payload that is announced, from this byte on, until it is whole.

        What `parts` raises is passed on, and what came before it stays. WeightsError if the server
        begins at another byte than `resume` says (0 if it announces another payload), or sends more or
        less than it announces. DamagedDownload if its sha256 is another in the end; then it is removed.
        """
        file = self._file_of(announced)
        if offset != file.size:
            raise WeightsError(
                f"the server sends from byte {offset:,} on, and is to from byte {file.size:,}; ask again"
            )
        self._check_room(announced.size - offset)
        self._progress(file.size, announced.size)
        for data in parts:
            if file.size + len(data) > announced.size:
                self.remove()
                raise WeightsError(
                    f"the server sends more than the {announced.size:,} bytes it announced; ask again"
                )
            file.append(data)
            self._progress(file.size, announced.size)
        if file.size < announced.size:
            raise WeightsError(
                f"the server ended after {file.size:,} of the {announced.size:,} bytes it announced; "
                "ask again"
            )
        if (found := file.digest) != announced.sha256:
            self.remove()
            raise DamagedDownload(
                f"the {announced.size:,} bytes that came have sha256 {found[:12]}, announced was "
                f"{announced.sha256[:12]}; ask again"
            )

    def _file_of(self, announced: Announced) -> _PartialFile:
        file = self._file
        if file is not None and file.sha256 == announced.sha256 and file.size <= announced.size:
            return file
        self.remove()
        self._file = _PartialFile(self._directory / f"{self._name}.{announced.sha256}.part")
        return self._file

    def _check_room(self, missing: int) -> None:
        free = shutil.disk_usage(self._directory).free
        if missing > free:
            raise InputError(
                f"{missing:,} bytes are to come, {self._directory} has room for {free:,}; free some space"
            )

    def read(self) -> memoryview:
        """The bytes that are there, in memory of their own."""
        return memoryview(b"") if self._file is None else read_whole(self._file.path)

    def remove(self) -> None:
        """Delete what is there."""
        if self._file is not None:
            self._file.close()
            self._file.path.unlink(missing_ok=True)
            self._file = None


class _PartialFile:
    """A file that grows at its end, digested as it does; its name says what the whole is to be."""

    def __init__(self, path: Path) -> None:
        named = NAME.fullmatch(path.name)
        assert named is not None
        self.path = path
        self.sha256 = named["sha256"]
        self.size = 0
        self._digest = hashlib.sha256()
        with self._failing():
            opened = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
            self._file = os.fdopen(opened, "ab+", buffering=0)
            self._file.seek(0)
            while data := self._file.read(READ_BYTES):
                self._count(data)

    def append(self, data: bytes) -> None:
        with self._failing():
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]
        self._count(data)

    def _count(self, data: bytes) -> None:
        self._digest.update(data)
        self.size += len(data)

    @property
    def digest(self) -> str:
        return self._digest.hexdigest()

    def close(self) -> None:
        self._file.close()

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"{self.path} cannot be written ({error.strerror or error}); free some space, or keep it "
                "elsewhere"
            ) from error


def partial_files(directory: Path, name: str | None = None) -> list[Path]:
    """The files of payloads in a directory: all of them, or those of one name."""
    found = ((path, NAME.fullmatch(path.name)) for path in sorted(directory.iterdir()))
    return [path for path, match in found if match and name in (None, match["name"])]
