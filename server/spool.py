"""Spool: payloads while they are sent, in bounded memory however many receivers and however slow."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from threading import Lock, RLock
from types import TracebackType
from typing import Self
from weakref import WeakValueDictionary

from common.errors import InputError, LibraryError
from common.files import Data
from common.grpc_codec import Announced

MEMORY_BYTES = 256 * 2**20


class Payload:
    """A payload that somebody reads, and what it is; in memory, or in a file if there is no room."""

    def __init__(self, data: Data) -> None:
        self.announced = Announced(len(data), hashlib.sha256(data).hexdigest())
        self.readers = 0
        self.is_leaving = False
        self._data: memoryview | None = memoryview(data)
        self._file: FileIO | None = None

    def read(self, offset: int, size: int) -> bytes:
        """So many bytes from there on; fewer at the end, and none behind it."""
        data = self._data
        if data is not None:
            return bytes(data[offset : offset + size])
        assert self._file is not None
        return os.pread(self._file.fileno(), size, offset)

    @property
    def memory_bytes(self) -> int:
        """What it takes of memory."""
        return 0 if self._data is None or self.is_leaving else self.announced.size

    def move_to_file(self, directory: Path) -> None:
        """Free its memory; the file has no name. OSError where it cannot be written."""
        assert self._data is not None
        with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
            rest = self._data
            while rest:
                rest = rest[file.write(rest) :]
            self._file = FileIO(os.dup(file.fileno()))
        self._data = None


class _Making:
    """Who makes a payload, while others wait for it."""

    def __init__(self) -> None:
        self.lock = Lock()


class Spool:
    """Payloads by key; threads may share it. `directory` is for the files, by default the system's.

    Once those in memory are larger than `memory_bytes` together, the ones not asked for longest are
    given up, or moved to files while somebody reads them; never the last one. Raises InputError where
    no file can be written in the directory.
    """

    def __init__(self, directory: Path | None = None, memory_bytes: int = MEMORY_BYTES) -> None:
        # Files are written under load only: too late to find out that they cannot be.
        self._directory = _writable(directory)
        self._memory_bytes = memory_bytes
        self._payloads: OrderedDict[str, Payload] = OrderedDict()
        self._making: WeakValueDictionary[str, _Making] = WeakValueDictionary()
        # A reading that is forgotten ends wherever the collector runs: maybe in here.
        self._lock = RLock()

    def open(self, key: str, make: Callable[[], Data]) -> Reading:
        """A payload to read from; made now unless it is there.

        However many ask for the same at once, it is made once. LibraryError where there is neither
        memory nor disk for it.
        """
        with self._lock:
            making = self._making.setdefault(key, _Making())
        with making.lock:
            with self._lock:
                if key in self._payloads:
                    return self._read_by_one_more(key, self._payloads[key])
            made = Payload(make())
            self._make_room(made.memory_bytes)
            with self._lock:
                self._payloads[key] = made
                return self._read_by_one_more(key, made)

    def _read_by_one_more(self, key: str, payload: Payload) -> Reading:
        self._payloads.move_to_end(key)
        payload.readers += 1
        return Reading(payload, lambda: self._read_by_one_less(key, payload))

    def _read_by_one_less(self, key: str, payload: Payload) -> None:
        with self._lock:
            payload.readers -= 1
            in_memory = payload.memory_bytes > 0
            if not payload.readers and not in_memory and self._payloads.get(key) is payload:
                del self._payloads[key]

    def _make_room(self, needed: int) -> None:
        with self._lock:
            leaving = self._leaving(needed)
        try:
            for payload in leaving:  # not under the lock: readers that end must not wait for the disk
                self._move_to_file(payload)
        finally:
            for payload in leaving:  # those behind one that could not be written stay in memory
                payload.is_leaving = False

    def _leaving(self, needed: int) -> list[Payload]:
        """Give up what nobody reads, and tell what is to move to files, until there is room."""
        leaving: list[Payload] = []
        for key, payload in list(self._payloads.items()):
            if self.memory_bytes + needed <= self._memory_bytes:
                break
            if not payload.readers:
                self._payloads.pop(key, None)
            elif payload.memory_bytes:
                payload.is_leaving = True
                leaving.append(payload)
        return leaving

    def _move_to_file(self, payload: Payload) -> None:
        try:
            payload.move_to_file(self._directory)
        except OSError as error:
            raise LibraryError(
                f"the spool {self._directory}: a network of {payload.announced.size:,} bytes cannot be "
                f"written ({error.strerror or error}); free some space, then ask again"
            ) from error

    @property
    def memory_bytes(self) -> int:
        """The size of all payloads that are in memory."""
        return sum(payload.memory_bytes for payload in self._payloads.values())


def _writable(directory: Path | None) -> Path:
    """The directory, by default the system's temporary one. InputError where no file can be written."""
    try:
        place = Path(tempfile.gettempdir() if directory is None else directory)
        with tempfile.TemporaryFile(dir=place, buffering=0) as file:
            file.write(b"\0")
        return place
    except OSError as error:
        raise InputError(
            f"the spool {directory or '(the temporary directory)'}: no file can be written in it "
            f"({error.strerror or error}); give --spool a directory that is there and may be written"
        ) from error


class Reading:
    """A payload that is read until its `with` ends, or it is forgotten."""

    def __init__(self, payload: Payload, end: Callable[[], None]) -> None:
        self.announced = payload.announced
        self.read = payload.read
        self._end: Callable[[], None] | None = end

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the reading; again changes nothing."""
        if self._end is not None:
            end, self._end = self._end, None
            end()

    def __del__(self) -> None:
        # A call that is given up while its payload is made never gets to its `with`.
        self.close()
