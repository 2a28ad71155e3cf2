"""Logging in: a connection to a server that is tried, and then saved for the commands after it."""

from __future__ import annotations

import sys
from collections.abc import Callable

import click

from common.bearer_token import token_in
from common.command_line import show_json
from common.connection_options import Connect
from common.errors import InputError
from common.grpc_channel import Connection
from common.saved_connections import SavedConnections
from common.tables import show
from common.text_files import MAX_BYTES, decoded

Check = Callable[[Connection], str]
"""Calls a server, and gives in a few words what it is. Raises what such a call does."""

TOKEN_STDIN = click.option("--token-stdin", is_flag=True, help="Read your token from standard input.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


def log_in(connect: Connect, address: str, token_stdin: bool, check: Check) -> None:
    """Save how a server is reached, once it has answered; what was saved for it before is replaced.

    Without another token, one is asked for on the terminal, if there is one. Nothing is saved where the
    server cannot be reached or does not let in: raises what `check` does, and InputError.
    """
    connect.anew(address, None)  # before a token is asked for in vain
    connection = connect.anew(address, _token(connect, token_stdin))
    found = check(connection)
    connect.saved.save(connect.to_save(connection))
    click.echo(f"logged in to {connection.address} ({found}); saved in {connect.saved.file}")


def log_out(saved: SavedConnections, address: str | None) -> None:
    """Remove what is saved for a server, which need not be named where it is the only one.

    InputError where nothing is saved for it.
    """
    if address is None:
        known = [connection.address for connection in saved.all()]
        if len(known) != 1:
            raise InputError(
                f"{len(known)} connections are saved ({', '.join(known) or 'none'}); say which to remove"
            )
        (address,) = known
    saved.forget(address)
    click.echo(
        f"nothing is saved for {address} any more; its token is good until its operator revokes it"
    )


def show_connections(saved: SavedConnections, as_json: bool) -> None:
    """What is saved, without the tokens. InputError where it cannot be read."""
    rows = [
        {
            "server": connection.address,
            "token": connection.token is not None,
            "tls": "none" if connection.insecure else "own CA" if connection.ca else "system's CAs",
            "certificate": connection.certificate,
        }
        for connection in saved.all()
    ]
    if as_json:
        show_json(rows)
        return
    show(
        str(saved.file),
        ["server", "token", "TLS", "certificate"],
        [
            [row["server"], "yes" if row["token"] else "no", row["tls"], row["certificate"] or ""]
            for row in rows
        ],
        caption="The last one is used where no server is named." if rows else "Nothing is saved.",
    )


def _token(connect: Connect, token_stdin: bool) -> str | None:
    if token_stdin:
        if connect.token_file is not None:
            raise InputError(
                f"--token-stdin and --token-file ({connect.token_file}) do not go together; give one"
            )
        return token_in(decoded(sys.stdin.buffer.read(MAX_BYTES)), "standard input")
    token = connect.token
    if token is None and connect.certificate is None and sys.stdin.isatty():
        typed = click.prompt(
            "Token (empty if the server asks for none)",
            default="",
            hide_input=True,
            show_default=False,
            err=True,
        )
        return token_in(typed, "the token") if typed.strip() else None
    return token
