"""Address: where a server listens, or is reached. One reader for every place where people write one."""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass
from typing import Self

from common.errors import InputError

SCHEME = "grpc://"
LOCALHOST = "localhost"
LOOPBACK = ("127.0.0.1", "::1")
"""What `localhost` is by RFC 6761. Nobody is asked for it, so that no answer makes it another machine."""

FORM = "it is HOST:PORT, for example 127.0.0.1:7070"
ANOTHER_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/+")
LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
"""The last label of what systems take for an IPv4 address in an old form, as 127.1."""


@dataclass(frozen=True)
class Address:
    """A host and a port. Two that mean the same are equal.

    `host` is in lower case: a name without a dot at its end, or an IP address without brackets.
    """

    host: str
    port: int

    @classmethod
    def read(cls, text: str, *, listening: bool = False) -> Self:
        """The address that is written as HOST:PORT or grpc://HOST:PORT, an IPv6 host in brackets.

        Where a server is `listening`, port 0 is any free one, and 0.0.0.0 and :: are all addresses of the
        machine. InputError if it is no address, with the rule and what to write.
        """
        try:
            return cls(*_parts(text, listening))
        except ValueError as error:
            raise InputError(f"the address is {text!r}: {error}") from error

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """Whether only this machine can be reached by it, whatever any name server says."""
        if (ip := _ip(self.host)) is None:
            return self.host == LOCALHOST
        return _unmapped(ip).is_loopback

    @property
    def target(self) -> str:
        """What gRPC is to dial. Bare, it would take a host `unix` or `dns` for a scheme of its own."""
        return f"dns:///{self}"

    @property
    def loopback_target(self) -> str:
        """The same where it is a loopback address, and no name is looked up for it."""
        if self.host != LOCALHOST:
            return self.target
        ipv4, ipv6 = LOOPBACK
        # A list has one family only; an IPv4 address has a form in the other.
        return f"ipv6:[::ffff:{ipv4}]:{self.port},[{ipv6}]:{self.port}"

    def numeric_hosts(self) -> list[str]:
        """The IP addresses of the host: its own, those of `localhost`, or as the system finds them.

        InputError if it finds none.
        """
        if self.host == LOCALHOST:
            return [*LOOPBACK]
        if _ip(self.host) is not None:
            return [self.host]
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise InputError(
                f"{self.host} is no host that is known here ({error.strerror or error}); give an address "
                "of this machine"
            ) from error
        return [*dict.fromkeys(str(place[0]) for *_, place in found)]


def _parts(text: str, listening: bool) -> tuple[str, int]:
    """Host and port. ValueError with a sentence on what is wrong."""
    bare = text[len(SCHEME) :] if text.lower().startswith(SCHEME) else text
    if (scheme := ANOTHER_SCHEME.match(bare)) is not None:
        raise ValueError(
            f"only {SCHEME} may stand before it; write {SCHEME}{_suggested(bare[scheme.end() :])}"
        )
    if re.search(r"\s", bare):
        raise ValueError(f"spaces are not part of it; write {_suggested(bare)}")
    if "/" in bare:
        raise ValueError(f"a path is not part of it; write {_suggested(bare)}")
    if "@" in bare:
        raise ValueError(f"a user is not part of it; write {_suggested(bare)}")
    return _host_and_port(bare, listening)


def _host_and_port(bare: str, listening: bool) -> tuple[str, int]:
    host, port = _divided(bare)
    if not re.fullmatch(r"[0-9]{1,9}", port):
        raise ValueError(FORM)
    lowest = 0 if listening else 1
    if not lowest <= int(port) <= 65535:
        raise ValueError(f"a port lies between {lowest} and 65535; {FORM}")
    return _host(host, listening), int(port)


def _suggested(text: str) -> str:
    """The address in a text that has more around it, or the form of one where there is none."""
    candidate = text.strip().split("/")[0].rpartition("@")[2]
    try:
        _host_and_port(candidate, listening=False)
    except ValueError:
        return "HOST:PORT"
    return candidate


def _divided(bare: str) -> tuple[str, str]:
    """The text before the port, and the port's."""
    if bare.startswith("["):
        inside, closed, rest = bare.partition("]")
        if closed and not rest:
            raise ValueError(f"it has no port; {FORM}")
        if not rest.startswith(":"):
            raise ValueError(FORM)
        return f"{inside}]", rest[1:]
    host, colon, port = bare.rpartition(":")
    if ":" in host:
        raise ValueError("an IPv6 address is in brackets, for example [::1]:7070")
    if not colon and bare and not bare.isdecimal():
        raise ValueError(f"it has no port; {FORM}")
    if not host:
        raise ValueError(FORM)
    return host, port


def _host(written: str, listening: bool) -> str:
    host = written.lower()
    if host.startswith("["):
        host = host[1:-1]
        if "%" in host:
            raise ValueError("no certificate can name a zone; give an address without '%'")
        if ":" not in host or _ip(host) is None:
            raise ValueError("brackets are for IPv6 addresses, for example [::1]:7070")
    ip = _ip(host)
    if ip is None:
        return _name(host)
    if _unmapped(ip).is_unspecified and not listening:
        raise ValueError(
            f"a server that listens on {host} is reached by its own address or name; on the same "
            "machine, write 127.0.0.1"
        )
    return str(ip)


def _name(host: str) -> str:
    if not host.isascii():
        raise ValueError("write the host's name in ASCII, as DNS has it (xn--...)")
    name = host.removesuffix(".")
    labels = name.split(".")
    if NUMBER.fullmatch(labels[-1]):
        raise ValueError(f"{host!r} is no IPv4 address; write it as four numbers, as in 127.0.0.1:7070")
    if len(name) > 253 or not all(LABEL.fullmatch(label) for label in labels):
        raise ValueError(f"{host!r} is no name of a host; {FORM}")
    return name


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _unmapped(
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The IPv4 address that an IPv6 address stands for, if it is of that kind."""
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return ip if mapped is None else mapped
