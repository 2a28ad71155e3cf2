"""Channel: how a program reaches a maskvote server, and what a call that fails raises."""

from __future__ import annotations

import ipaddress
import re
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from grpc import StatusCode

from common.errors import InputError, MaskvoteError, MismatchError, UnavailableError
from common.grpc_codec import AUTHORIZATION, BEARER, ERROR_KIND, RETRY, error_of
from common.proto_codec import MAX_MESSAGE_BYTES

TOKEN = re.compile(r"[!-~]{1,200}")
MAX_DETAILS_CHARACTERS = 2000
KEEPALIVE_SECONDS = 30
"""After so long a silence the server is asked whether it is still there."""


@dataclass(frozen=True)
class Connection:
    """How a server is reached: at HOST:PORT, by which TLS, and with whose token.

    `ca` (PEM) are the authorities that may vouch for the server, those of the system if None;
    `certificate` and its `key` (PEM) vouch for who calls. There is no TLS if `insecure`, nor to this
    machine itself unless one of these files is given. Raises InputError for files that are no use.
    """

    address: str
    token: str | None = field(default=None, repr=False)
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    insecure: bool = False

    def __post_init__(self) -> None:
        host_and_port(self.address)
        if self.token is not None and not TOKEN.fullmatch(self.token):
            raise InputError(
                f"the token has {len(self.token)} characters; it has 1 to 200, all of ASCII and none of "
                "them a space: give it as it was handed out"
            )
        if (self.certificate is None) != (self.key is None):
            raise InputError(
                f"a certificate ({self.certificate}) and its key ({self.key}) go together; give both"
            )
        if self.insecure and self._files:
            raise InputError(
                f"without TLS there is no use for {', '.join(map(str, self._files))}; leave them out, or "
                "leave out insecure"
            )
        if self.token is not None and not (self.tls or self._local):
            raise InputError(
                f"without TLS everybody on the way to {self.address} reads the token; leave out insecure "
                "(or the token)"
            )

    @property
    def _files(self) -> list[Path]:
        return [path for path in (self.ca, self.certificate, self.key) if path is not None]

    @property
    def _local(self) -> bool:
        return is_loopback(host_and_port(self.address)[0])

    @property
    def tls(self) -> bool:
        """Whether TLS is spoken."""
        return not self.insecure and (bool(self._files) or not self._local)

    @property
    def metadata(self) -> Sequence[tuple[str, str]]:
        """What every call carries."""
        return () if self.token is None else ((AUTHORIZATION, BEARER + self.token),)

    def open(self, *options: tuple[str, int]) -> grpc.Channel:
        """A channel to the server, with further options for gRPC; nothing is sent before a call."""
        every = (
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            # Bit 0 is no compression: four compressed megabytes would be gigabytes before any limit.
            ("grpc.compression_enabled_algorithms_bitset", 1),
            ("grpc.keepalive_time_ms", KEEPALIVE_SECONDS * 1000),
            ("grpc.enable_http_proxy", 0 if self._local else 1),
        )
        if not self.tls:
            return grpc.insecure_channel(self.address, (*every, *options))
        return grpc.secure_channel(self.address, self._credentials(), (*every, *options))

    def _credentials(self) -> grpc.ChannelCredentials:
        # Left to itself, gRPC trusts a list of its own.
        ca = self.ca or ssl.get_default_verify_paths().cafile
        try:
            # gRPC tells a file that is no use only as a server that cannot be reached.
            context = ssl.create_default_context(cafile=ca)
            if self.certificate is not None:
                # A key with a password would be asked for it on the terminal.
                context.load_cert_chain(self.certificate, self.key, password="")
            parts = [
                None if path is None else Path(path).read_bytes()
                for path in (ca, self.key, self.certificate)
            ]
        except OSError as error:  # an SSLError is one too
            raise InputError(
                f"TLS cannot use {', '.join(map(str, self._files))} ({error}); give PEM files, the key "
                "without a password"
            ) from error
        return grpc.ssl_channel_credentials(*parts)


@contextmanager
def refusals_raised(address: str) -> Iterator[None]:
    """Turn a call that fails into the error that the server at this address tells of."""
    try:
        yield
    except grpc.RpcError as error:
        raise refusal_of(error, address) from error


def refusal_of(error: grpc.RpcError, address: str) -> MaskvoteError:
    """The error that a call which failed tells of: the server's own, or why there was no answer."""
    trailing = {name: value for name, value in error.trailing_metadata() or () if isinstance(value, str)}
    told = "".join(c if c.isprintable() else " " for c in error.details() or "")
    told = told[:MAX_DETAILS_CHARACTERS]
    own = error_of(trailing.get(ERROR_KIND), told, trailing.get(RETRY))
    if own is not None:
        return own
    status = error.code()
    if status is StatusCode.UNIMPLEMENTED:
        return MismatchError(
            f"{address} does not know this call ({told}); use a client and a server of one version"
        )
    if status is StatusCode.RESOURCE_EXHAUSTED:
        return InputError(f"{address} takes no such message ({told}); it is larger than is allowed")
    return UnavailableError(
        f"{address} does not answer ({status.name}: {told}); check the address, TLS and the network, and "
        "that the server runs"
    )


def host_and_port(address: str) -> tuple[str, int]:
    """The parts of HOST:PORT, where an IPv6 host is in brackets. InputError if it is no such address."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise InputError(f"the address is {address!r}; it is HOST:PORT, for example 127.0.0.1:7070")
    return host.removeprefix("[").removesuffix("]"), int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host's address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
