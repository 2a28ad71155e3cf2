"""Patience: how long a device goes on trying to reach its server, and how often."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from common.durations import in_words
from common.errors import InputError, MaskvoteError, UnavailableError

SHORTEST_SECONDS, LONGEST_SECONDS = 1.0, 30.0
"""Between attempts: the more have failed the longer, and by lot, so that devices do not come at once."""

DEFAULT_SECONDS = 3600.0
"""An hour: longer than a server or a network is mostly away."""

Tell = Callable[[str], None]
"""Called with a sentence for whoever waits."""


class Patience:
    """Waits between attempts until it runs out: so many seconds after the first of them failed.

    With 0 seconds there is one attempt. `tell` hears of the first failure, not of those after it.
    """

    def __init__(self, seconds: float, tell: Tell = lambda sentence: None) -> None:
        if not seconds >= 0:
            raise InputError(f"the patience is {seconds} seconds; it is a number from 0")
        self._seconds = seconds
        self._tell = tell
        self.renew()

    def renew(self) -> None:
        """Begin anew, as something has succeeded."""
        self._failed_since: float | None = None
        self._pause = SHORTEST_SECONDS

    def wait(self, error: MaskvoteError) -> None:
        """Wait until it is time for another attempt; raise the error if there is to be none.

        A server that says how long to wait is not called before. What is raised says how long it was
        tried.
        """
        now = time.monotonic()
        if self._failed_since is None:
            self._failed_since = now
            if self._seconds > 0:
                self._tell(f"{error}; trying on for {in_words(self._seconds)}")
        left = self._failed_since + self._seconds - now
        told = error.retry_seconds if isinstance(error, UnavailableError) else None
        if left <= 0 or (told is not None and told > left):
            raise self._tried(error, now - self._failed_since) from error
        time.sleep(min(left, self._next_pause()) if told is None else told * random.uniform(1, 1.2))

    def _next_pause(self) -> float:
        pause = self._pause
        self._pause = min(LONGEST_SECONDS, random.uniform(SHORTEST_SECONDS, 3 * pause))
        return pause

    def _tried(self, error: MaskvoteError, seconds: float) -> MaskvoteError:
        if self._seconds == 0:
            return error
        return type(error)(f"{error}; tried for {in_words(seconds)}, so try again later: nothing is lost")
