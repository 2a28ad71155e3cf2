"""The options of a command that may talk to a server, the same for devices and operators.

What is given on the command line goes before the environment, and that before what `login` has saved for
the very server that is called.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from common.bearer_token import read_token, token_in
from common.grpc_channel import Connection
from common.pem_files import read_authorities, read_certificate, read_key
from common.saved_connections import Role, SavedConnection, SavedConnections

TOKEN_VARIABLE = "MASKVOTE_TOKEN"
PATH = click.Path(path_type=Path)


@dataclass(frozen=True)
class Connect:
    """From HOST:PORT to how it is reached: by the options that were given, and by what is saved."""

    saved: SavedConnections
    token_file: Path | None = None
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    insecure: bool = False

    def __call__(self, address: str) -> Connection:
        """How this server is reached. With `insecure`, nothing that is saved is used.

        InputError for what cannot be used, see `Connection`, and where what is saved cannot be read.
        """
        saved = None if self.insecure else self.saved.of(address)
        if saved is None:
            return self.anew(address, self.token)
        ca = self._ca
        if ca is None and saved.ca is not None:
            ca = saved.ca.encode()
        pair = self.certificate, self.key
        if pair == (None, None):
            pair = _path(saved.certificate), _path(saved.key)
        insecure = saved.insecure and ca is None and pair == (None, None)
        return _connection(address, self.token or saved.token, ca, *pair, insecure=insecure)

    def anew(self, address: str, token: str | None) -> Connection:
        """How this server is reached with this token and the options alone. Errors as of a call."""
        return _connection(address, token, self._ca, self.certificate, self.key, insecure=self.insecure)

    def to_save(self, connection: Connection) -> SavedConnection:
        """What is to be saved of a connection that was made `anew`."""
        return SavedConnection(
            connection.address,
            connection.token,
            None if connection.ca is None else connection.ca.decode(),
            None if self.certificate is None else str(self.certificate.absolute()),
            None if self.key is None else str(self.key.absolute()),
            self.insecure,
        )

    @property
    def token(self) -> str | None:
        """The token that is given, in a file or else in the environment. InputError if it is none."""
        if self.token_file is not None:
            return read_token(self.token_file)
        given = os.environ.get(TOKEN_VARIABLE)
        return token_in(given, TOKEN_VARIABLE) if given else None

    @property
    def _ca(self) -> bytes | None:
        return None if self.ca is None else read_authorities(self.ca)


def connection_options(role: Role) -> Callable[[Callable], Callable]:
    """Give a command the options that say how a server is reached; it gets them as one: `connect`."""

    def decorate(command: Callable) -> Callable:
        @click.option(
            "--ca",
            type=PATH,
            help="Who may vouch for the server (PEM); without it, those whom the system trusts.",
        )
        @click.option(
            "--token-file",
            type=PATH,
            help=f"File with your token; without it, {TOKEN_VARIABLE}, or what `login` has saved.",
        )
        @click.option(
            "--certificate", type=PATH, help="Your own certificate, if the server asks for it (PEM)."
        )
        @click.option("--key", type=PATH, help="The certificate's key (PEM).")
        @click.option(
            "--insecure",
            is_flag=True,
            help="Talk to the server without TLS, though others can listen, and without what is saved.",
        )
        @functools.wraps(command)
        def with_connect(
            *arguments: Any,
            ca: Path | None,
            token_file: Path | None,
            certificate: Path | None,
            key: Path | None,
            insecure: bool,
            **options: Any,
        ) -> Any:
            connect = Connect(SavedConnections(role), token_file, ca, certificate, key, insecure)
            return command(*arguments, connect=connect, **options)

        return with_connect

    return decorate


def _path(saved: str | None) -> Path | None:
    return None if saved is None else Path(saved)


def _connection(
    address: str,
    token: str | None,
    ca: bytes | None,
    certificate: Path | None,
    key: Path | None,
    *,
    insecure: bool,
) -> Connection:
    return Connection(
        address,
        token,
        ca,
        None if certificate is None else read_certificate(certificate),
        None if key is None else read_key(key),
        insecure,
    )
