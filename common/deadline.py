"""Deadline: until when something has to be done, by a clock that nobody sets."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Deadline:
    """A span of time, in seconds of the system's monotonic clock: what day it is means nothing to it."""

    began: float
    end: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """The span that begins now and lasts so long; it is over at once if that is not above 0."""
        now = time.monotonic()
        return cls(now, now + seconds)

    @property
    def left(self) -> float:
        """Seconds until its end; negative once it is over."""
        return self.end - time.monotonic()

    @property
    def spent(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.began

    @property
    def share_spent(self) -> float:
        """How much of it is over, in [0, 1]."""
        length = self.end - self.began
        return 1.0 if length <= 0 else min(1.0, self.spent / length)

    def part(self, share: float) -> Deadline:
        """The span from now on of such a share of what is left."""
        return Deadline.after(share * self.left)
