"""Tuning file: how far an adaptation has come, kept while it tunes, so that another process goes on."""

from __future__ import annotations

import glob
import hashlib
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import InputError, MaskvoteError
from common.files import read_whole, writing

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 1
"""Of what is written: another one is not gone on with."""
EVERY_SECONDS = 5.0
"""Least time between two writes."""
MOST_SHARE = 0.05
"""The largest share of the time that writing may take: on a slow disk it is written less often."""
DIGEST_BYTES = hashlib.sha256().digest_size


class TuningFile:
    """A file that keeps tensors and words of one adaptation, and replaces them as a whole.

    It is a cache: one that cannot be read, or is of another adaptation, counts as none. `every` is the
    least number of seconds between two writes; with 0, it is written after every iteration.
    """

    def __init__(self, path: Path, every: float = EVERY_SECONDS) -> None:
        self.path = Path(path)
        self._every = every
        self._next = time.monotonic() + every

    def read(self, identity: str) -> tuple[dict[str, Tensor], dict[str, str]] | None:
        """What was written last for this identity; None where there is nothing of it."""
        from common.tensor_file import read_tensors

        with suppress(MaskvoteError):
            data = read_whole(self.path)
            content, digest = data[:-DIGEST_BYTES], data[-DIGEST_BYTES:]
            if hashlib.sha256(content).digest() == digest:
                tensors, words = read_tensors(content)
                if words.get("identity") == f"{VERSION} {identity}":
                    return tensors, words
        return None

    @property
    def due(self) -> bool:
        """Whether it is time to write again."""
        return time.monotonic() >= self._next

    def write(self, identity: str, tensors: Mapping[str, Tensor], words: Mapping[str, str]) -> None:
        """Write what is to be kept, without a copy of it in memory.

        InputError where the disk does not take it; then it is due again after some time.
        """
        from common.tensor_file import parts_of_file

        began = time.monotonic()
        digest = hashlib.sha256()
        try:
            with writing(self.path, private=True) as file:
                for part in parts_of_file(tensors, {**words, "identity": f"{VERSION} {identity}"}):
                    digest.update(part)
                    file.write(part)
                file.write(digest.digest())
        finally:
            if self._every:
                now = time.monotonic()
                self._next = now + max(self._every, (now - began) / MOST_SHARE)

    def remove(self) -> None:
        """Remove the file, and what a killed process left of one. InputError where it cannot be done."""
        try:
            self.path.unlink(missing_ok=True)
            for path in self.path.parent.glob(f".{glob.escape(self.path.name)}-*"):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise InputError(
                f"{self.path} cannot be removed ({error.strerror or error}); remove it yourself"
            ) from error
