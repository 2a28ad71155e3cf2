"""Channel: how a program reaches a maskvote server, and what a call that fails raises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import grpc
from grpc import StatusCode

from common.address import Address
from common.bearer_token import check_token
from common.errors import InputError, MaskvoteError, MismatchError, UnavailableError
from common.grpc_codec import AUTHORIZATION, BEARER, ERROR_KIND, RETRY, error_of
from common.pem_files import check_pair, system_authorities
from common.proto_codec import MAX_MESSAGE_BYTES

MAX_DETAILS_CHARACTERS = 2000
KEEPALIVE_SECONDS = 30
"""After so long a silence the server is asked whether it is still there."""


@dataclass(frozen=True)
class Connection:
    """How a server is reached: at HOST:PORT, by which TLS, and with whose token.

    `ca` are the authorities that may vouch for the server, those of the system if None; `certificate` and
    its `key` vouch for who calls. All are PEM, as `common.pem_files` reads them. There is no TLS if
    `insecure`, nor to this machine itself unless one of these is given. Raises InputError for what cannot
    be used, and where others could read the token. `address` is then written as `Address` writes it.
    """

    address: str
    token: str | None = field(default=None, repr=False)
    ca: bytes | None = field(default=None, repr=False)
    certificate: bytes | None = field(default=None, repr=False)
    key: bytes | None = field(default=None, repr=False)
    insecure: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "address", str(Address.read(self.address)))
        if self.token is not None:
            check_token(self.token)
        if (self.certificate is None) != (self.key is None):
            lacking = "certificate" if self.certificate is None else "key"
            raise InputError(
                f"a certificate and its key go together, and the {lacking} is missing; give both"
            )
        if self.insecure and self._given:
            raise InputError(
                f"without TLS there is no use for {', '.join(self._given)}; leave them out, or leave out "
                "insecure"
            )
        if self.token is not None and not (self.tls or self.at.loopback):
            raise InputError(
                f"without TLS everybody on the way to {self.address} reads the token; leave out insecure "
                "(or the token)"
            )
        if self.certificate is not None and self.key is not None:
            check_pair(self.certificate, self.key, "the certificate and the key")

    @property
    def _given(self) -> list[str]:
        return [name for name in ("ca", "certificate", "key") if getattr(self, name) is not None]

    @cached_property
    def at(self) -> Address:
        """The address by its parts."""
        return Address.read(self.address)

    @property
    def tls(self) -> bool:
        """Whether TLS is spoken."""
        return not self.insecure and (bool(self._given) or not self.at.loopback)

    @cached_property
    def authorities(self) -> bytes:
        """Who may vouch for the server, as PEM. InputError if nobody is given and the system has none."""
        return system_authorities() if self.ca is None else self.ca

    @property
    def metadata(self) -> Sequence[tuple[str, str]]:
        """What every call carries."""
        return () if self.token is None else ((AUTHORIZATION, BEARER + self.token),)

    def open(self, *options: tuple[str, int]) -> grpc.Channel:
        """A channel to the server, with further options for gRPC; nothing is sent before a call.

        InputError where TLS is to be spoken, and nobody can vouch for the server.
        """
        every = (
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            # Bit 0 is no compression: four compressed megabytes would be gigabytes before any limit.
            ("grpc.compression_enabled_algorithms_bitset", 1),
            ("grpc.keepalive_time_ms", KEEPALIVE_SECONDS * 1000),
            ("grpc.enable_http_proxy", 0 if self.at.loopback else 1),
        )
        if not self.tls:
            # A token goes to what is dialled: for loopback, no name is looked up.
            target = self.at.loopback_target if self.at.loopback else self.at.target
            return grpc.insecure_channel(target, (*every, *options))
        # Left to itself, gRPC trusts a list of its own.
        credentials = grpc.ssl_channel_credentials(self.authorities, self.key, self.certificate)
        return grpc.secure_channel(self.at.target, credentials, (*every, *options))


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
