"""Refusals: how often one host may come with tokens that nobody has, before none is looked up."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import TypeVar
from urllib.parse import unquote

from common.errors import MaskvoteError, TokenError, UnavailableError
from server.traffic import Bucket

PER_MINUTE = 60
"""Refusals of one host that cost it nothing: of a token that is mistyped, a device comes once."""
MAX_REMEMBERED = 10_000
"""Hosts, and tokens that were accepted; what was not heard of longest is forgotten."""

Key = TypeVar("Key")
Value = TypeVar("Value")


class Refusals:
    """Counts refused tokens by host; for one thread, as an event loop is. `clock` never runs back.

    A host that came with too many is told to wait, before a token is looked up. This is not held
    against those behind the same address whose token was accepted since the start: they are looked up
    as ever. Others there have to wait too, as nothing tells their tokens from unknown ones.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._hosts: OrderedDict[str, Bucket] = OrderedDict()
        self._accepted: OrderedDict[bytes, None] = OrderedDict()

    @contextmanager
    def counted(self, host: str, token: str | bytes | None) -> Iterator[None]:
        """One look-up of a token, which raises TokenError to refuse it. None stands for having none.

        Raises UnavailableError, with the seconds to wait, instead of having a token looked up that was
        not accepted before, if the host's are refused too often (PER_MINUTE at once, and a minute).
        """
        digest = _digest(token)
        bucket = None if digest in self._accepted else self._charged(host)
        try:
            yield
        except TokenError:
            self._accepted.pop(digest, None)
            raise
        except MaskvoteError:  # the library is busy, which says nothing of the token
            _give_back(bucket)
            raise
        # Not in a `finally`: whoever hangs up while their token is looked up has cost a look-up.
        _give_back(bucket)
        _latest(self._accepted, digest, None)

    def _charged(self, host: str) -> Bucket:
        """A host's bucket, of which one is taken: as many look-ups at once are no way around it."""
        now = self._clock()
        bucket = _latest(self._hosts, host, Bucket(PER_MINUTE, PER_MINUTE / 60, now))
        if seconds := bucket.seconds_until(1, now):
            raise UnavailableError(
                f"more than {PER_MINUTE} tokens a minute came from this address that nobody has; if "
                "yours is right, call again later",
                retry_seconds=seconds,
            )
        bucket.take(1)
        return bucket


def host_of(peer: str) -> str:
    """Who is taken for one host: an IPv4 address, or the 64 bits of an IPv6 address that one line gets.

    A peer is as gRPC writes it: ipv4:127.0.0.1:50100, ipv6:%5B::1%5D:50100.
    """
    host = unquote(peer).rpartition(":")[0]
    try:
        address = ip_address(host.partition(":")[2].strip("[]"))
    except ValueError:
        return host
    if isinstance(address, IPv6Address) and address.ipv4_mapped is None:
        return str(IPv6Network((int(address), 64), strict=False))
    return str(getattr(address, "ipv4_mapped", None) or address)


def _digest(token: str | bytes | None) -> bytes:
    """A name for a token that is not its secret."""
    if token is None:
        return b""
    return hashlib.sha256(token if isinstance(token, bytes) else token.encode()).digest()


def _give_back(bucket: Bucket | None) -> None:
    if bucket is not None:
        bucket.take(-1)


def _latest(remembered: OrderedDict[Key, Value], key: Key, new: Value) -> Value:
    """What is remembered under a key, `new` at first; it is forgotten last from now on."""
    value = remembered.setdefault(key, new)
    remembered.move_to_end(key)
    if len(remembered) > MAX_REMEMBERED:
        remembered.popitem(last=False)
    return value
