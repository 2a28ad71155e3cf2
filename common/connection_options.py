"""The options of a command that may talk to a server, the same for devices and operators."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from common.bearer_token import read_token, token_in
from common.grpc_channel import Connection
from common.pem_files import read_authorities, read_certificate, read_key

TOKEN_VARIABLE = "MASKVOTE_TOKEN"
PATH = click.Path(path_type=Path)

Connect = Callable[[str], Connection]
"""From HOST:PORT to how it is reached."""


def connection_options(command: Callable) -> Callable:
    """Give a command the options that say how a server is reached; it gets them as one: `connect`."""

    @click.option("--ca", type=PATH, help="Who may vouch for the server (PEM); without it, those whom "
                  "the system trusts.")  # fmt: skip
    @click.option("--token-file", type=PATH, help="File with your token; without it, it is read from "
                  f"{TOKEN_VARIABLE}.")  # fmt: skip
    @click.option(
        "--certificate", type=PATH, help="Your own certificate, if the server asks for it (PEM)."
    )
    @click.option("--key", type=PATH, help="The certificate's key (PEM).")
    @click.option("--insecure", is_flag=True, help="Talk to the server without TLS, though others can "
                  "listen.")  # fmt: skip
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
        def connect(address: str) -> Connection:
            return Connection(
                address,
                _token(token_file),
                None if ca is None else read_authorities(ca),
                None if certificate is None else read_certificate(certificate),
                None if key is None else read_key(key),
                insecure,
            )

        return command(*arguments, connect=connect, **options)

    return with_connect


def _token(file: Path | None) -> str | None:
    if file is not None:
        return read_token(file)
    given = os.environ.get(TOKEN_VARIABLE)
    return token_in(given, TOKEN_VARIABLE) if given else None
