"""Probe cache: the probes of the servers that this user's devices took part with, fetched once each.

A directory of files, each named by its sha256. It may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

from common.errors import InputError
from common.files import Data, read_whole, write_whole
from common.grpc_codec import Announced
from common.user_directories import CACHE_VARIABLE, maskvote_cache

MAX_BYTES = 256 * 10**6
"""Some forty probes of a ResNet-18; the least recently used go first."""
LEFTOVER_SECONDS = 3600
"""A file that was begun so long ago, and has no name yet, is a killed process's."""


class ProbeCache:
    """Probes in a directory, which is made when one is kept there; without a directory nothing is kept.

    Processes may share it: files are there whole or not at all. A file that is damaged is as if it were
    not there. `tell` hears why a probe cannot be kept, which is no error: it is fetched once more.
    """

    def __init__(
        self,
        directory: Path | None,
        max_bytes: int = MAX_BYTES,
        tell: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._tell = tell

    @classmethod
    def of_user(cls, tell: Callable[[str], None]) -> Self:
        """The cache of this process's user."""
        directory = maskvote_cache("probes")
        if directory is None:
            tell(
                "The probe is not kept for the next time: this user has no home. Let "
                f"{CACHE_VARIABLE} name a directory for it."
            )
        return cls(directory, tell=tell)

    def get(self, announced: Announced) -> memoryview | None:
        """The file that is announced, in memory of its own; None where it is not there."""
        if self._directory is None:
            return None
        path = self._path(self._directory, announced)
        try:
            data = read_whole(path)
        except InputError:
            return None
        if len(data) != announced.size or hashlib.sha256(data).hexdigest() != announced.sha256:
            return None
        with suppress(OSError):
            os.utime(path)
        return data

    def put(self, announced: Announced, data: Data) -> None:
        """Keep the file that was announced; the least recently used ones make room for it."""
        if self._directory is None:
            return
        path = self._path(self._directory, announced)
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(path, data)
            self._make_room(self._directory, path)
        except (OSError, InputError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            self._tell(f"The probe is not kept for the next time in {self._directory}: {reason}")

    @staticmethod
    def _path(directory: Path, announced: Announced) -> Path:
        return directory / f"{announced.sha256}.safetensors"

    def _make_room(self, directory: Path, newest: Path) -> None:
        files = []
        for path in directory.iterdir():
            with suppress(FileNotFoundError):  # another process has made room
                status = path.stat()
                if not path.name.startswith("."):
                    files.append((status.st_mtime_ns, status.st_size, path))
                elif time.time() - status.st_mtime > LEFTOVER_SECONDS:
                    path.unlink()
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total > self._max_bytes and path != newest:
                path.unlink(missing_ok=True)
                total -= size
