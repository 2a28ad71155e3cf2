"""Traffic: how much one caller may ask for and send, and all of them together."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from common.errors import UnavailableError
from common.exchange import Limits

MAX_CALLS = 2000
"""Calls in progress at one time, all callers together: slow ones cost some ten kilobytes each."""
MAX_CALLERS = 10_000
"""Callers that are remembered; whoever was not heard of longest starts anew."""


class Bucket:
    """What may still be spent: a `level` that rises `per_second` up to the `capacity` it begins with."""

    def __init__(self, capacity: float, per_second: float, now: float) -> None:
        self.level = self._capacity = capacity
        self._per_second = per_second
        self._at = now

    def take(self, amount: float) -> None:
        """Spend so much; what is spent beyond the level has to be filled up first."""
        self.level -= amount

    def seconds_until(self, level: float, now: float) -> float:
        """How long it takes, from now on, until it is filled to this level; 0 if it is."""
        self.level = min(self._capacity, self.level + (now - self._at) * self._per_second)
        self._at = now
        return max(0.0, (level - self.level) / self._per_second)


@dataclass
class _Account:
    """What a caller may still start and send, and how many of its calls run."""

    calls: Bucket
    bytes: Bucket
    running: int = 0


class Traffic:
    """Counts calls; for one thread, as an event loop is. `clock` gives seconds that never run back."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._accounts: OrderedDict[str, _Account] = OrderedDict()
        self.running = 0

    @contextmanager
    def admitted(self, caller: str) -> Iterator[Callable[[int], None]]:
        """One call of a caller, for as long as it lasts; gives what is to be told of the bytes it sends.

        Raises UnavailableError, with the seconds to wait, if the caller has started too many calls
        lately (a bucket of `burst`, filled at `calls_per_minute`), has sent too much (one of
        `bytes_per_minute`), runs too many at once, or the server does. How large a message is shows when
        it is there: one that goes beyond is taken, and the next call waits for it.
        """
        if self.running >= MAX_CALLS:
            raise UnavailableError(
                f"the server answers {MAX_CALLS:,} calls already, as many as it takes; call again later",
                retry_seconds=5,
            )
        account = self._account(caller)
        self._charge(account)
        account.running += 1
        self.running += 1
        try:
            yield account.bytes.take
        finally:
            account.running -= 1
            self.running -= 1

    def _account(self, caller: str) -> _Account:
        limits = self._limits
        calls = Bucket(limits.burst, limits.calls_per_minute / 60, self._clock())
        sent = Bucket(limits.bytes_per_minute, limits.bytes_per_minute / 60, self._clock())
        account = self._accounts.setdefault(caller, _Account(calls, sent))
        self._accounts.move_to_end(caller)
        if len(self._accounts) > MAX_CALLERS:
            idle = (name for name, known in self._accounts.items() if not known.running)
            self._accounts.pop(next(idle), None)
        return account

    def _charge(self, account: _Account) -> None:
        limits, now = self._limits, self._clock()
        if account.running >= limits.concurrent_calls:
            raise UnavailableError(
                f"{account.running} calls of this caller are running, and {limits.concurrent_calls} "
                "may at one time; wait for one of them to end",
                retry_seconds=1,
            )
        if seconds := account.bytes.seconds_until(0, now):
            raise UnavailableError(
                f"more than {limits.bytes_per_minute:,} bytes a minute were sent; call again later",
                retry_seconds=seconds,
            )
        if seconds := account.calls.seconds_until(1, now):
            raise UnavailableError(
                f"more than {limits.calls_per_minute} calls a minute, after the first {limits.burst}; "
                "call again later",
                retry_seconds=seconds,
            )
        account.calls.take(1)
