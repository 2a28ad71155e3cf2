"""Spool: payloads on the disk while they are sent, so that a slow receiver holds no memory."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Self

from common.errors import LibraryError
from common.files import Data
from common.grpc_codec import Announced

DEFAULT_BYTES = 2 * 2**30


@dataclass
class _Spooled:
    path: Path
    announced: Announced


@dataclass(frozen=True)
class Payload:
    """A payload that is open for reading, and what it is; closed when its `with` ends."""

    file: FileIO
    announced: Announced

    def read(self, offset: int, size: int) -> bytes:
        """So many bytes from there on; fewer at the end, and none behind it."""
        return os.pread(self.file.fileno(), size, offset)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()


class Spool:
    """Files by key in a directory of their own, which ends with the spool; threads may share it.

    Once they are larger than `max_bytes` together, those not asked for longest are deleted, though
    never the last one: whoever has one open reads on.
    """

    def __init__(self, parent: Path | None = None, max_bytes: int = DEFAULT_BYTES) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="maskvote-spool-", dir=parent)
        self._max_bytes = max_bytes
        self._files: OrderedDict[str, _Spooled] = OrderedDict()
        self._making: dict[str, Lock] = {}
        self._lock = Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._directory.cleanup()

    def open(self, key: str, make: Callable[[], Data]) -> Payload:
        """A payload to read from; made now unless it is there.

        However many ask for the same at once, it is made once. LibraryError where it cannot be written.
        """
        with self._lock:
            making = self._making.setdefault(key, Lock())
        try:
            with making:
                while True:
                    with self._lock, suppress(KeyError, FileNotFoundError):
                        self._files.move_to_end(key)
                        spooled = self._files[key]
                        return Payload(spooled.path.open("rb", buffering=0), spooled.announced)
                    self._write(key, make())
        finally:
            with self._lock:
                self._making.pop(key, None)

    def _write(self, key: str, data: Data) -> None:
        announced = Announced(len(data), hashlib.sha256(data).hexdigest())
        path = Path(self._directory.name) / hashlib.sha256(key.encode()).hexdigest()
        try:
            path.write_bytes(data)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise LibraryError(
                f"the spool {self._directory.name}: a network of {len(data):,} bytes cannot be written "
                f"({error.strerror}); free some space, then ask again"
            ) from error
        with self._lock:
            self._files[key] = _Spooled(path, announced)
            while len(self._files) > 1 and self.bytes > self._max_bytes:
                _, oldest = self._files.popitem(last=False)
                oldest.path.unlink(missing_ok=True)

    @property
    def bytes(self) -> int:
        """The size of all files."""
        return sum(spooled.announced.size for spooled in self._files.values())
