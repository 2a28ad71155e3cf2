"""Futile attempts: healings that came to nothing, and would again. Nobody is to wait for them twice."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock

from server.healing.store import Stamp

MOST = 1000
"""Masks that are remembered; the one whose attempt is the longest ago goes first."""
LONGER = 1.25
"""How many times the seconds there have to be for another attempt: what is left of the time that a
device waits is never the same twice."""


@dataclass(frozen=True)
class Attempt:
    """To heal for a packed mask in so many seconds, where the healed backbone has this stamp."""

    mask: bytes
    seconds: float
    backbone: Stamp | None


class Futile:
    """The last futile attempt for each of so many masks. Threads may share it."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._lock = Lock()
        self._attempts: OrderedDict[bytes, Attempt] = OrderedDict()

    def add(self, attempt: Attempt) -> None:
        """Remember one that came to nothing, in place of an earlier one for its mask."""
        with self._lock:
            self._attempts[attempt.mask] = attempt
            self._attempts.move_to_end(attempt.mask)
            if len(self._attempts) > self._most:
                self._attempts.popitem(last=False)

    def covers(self, attempt: Attempt) -> bool:
        """Whether it would come to nothing as well: it is from the same backbone, and hardly longer."""
        with self._lock:
            past = self._attempts.get(attempt.mask)
        return (
            past is not None
            and past.backbone == attempt.backbone
            and attempt.seconds <= LONGER * past.seconds
        )
