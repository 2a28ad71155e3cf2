"""Tuning file: how far an adaptation has come, kept while it tunes, so that another process goes on."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import InputError, MaskvoteError
from common.files import read_whole, write_whole

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 1
"""Of what is written: another one is not gone on with."""
EVERY_SECONDS = 5.0
"""Least time between two writes."""
MOST_SHARE = 0.05
"""Most of the time that writing takes: on a slow disk it is written less often."""
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
            digest, content = data[:DIGEST_BYTES], data[DIGEST_BYTES:]
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
        """Write what is to be kept. InputError where the disk does not take it."""
        from common.tensor_file import write_tensors

        began = time.monotonic()
        content = write_tensors(
            {name: tensor.detach().cpu() for name, tensor in tensors.items()},
            {**words, "identity": f"{VERSION} {identity}"},
        )
        write_whole(self.path, hashlib.sha256(content).digest(), content)
        self.path.chmod(0o600)
        if self._every:
            now = time.monotonic()
            self._next = now + max(self._every, (now - began) / MOST_SHARE)

    def remove(self) -> None:
        """Remove the file, where there is one. InputError where it cannot be removed."""
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise InputError(
                f"{self.path} cannot be removed ({error.strerror or error}); remove it yourself"
            ) from error
