"""maskvote-client login: try a connection to a server, and save it for the commands after it."""

from __future__ import annotations

import click

from common.connection_options import Connect, connection_options
from common.grpc_channel import Connection
from common.grpc_codec import DEVICES, decode_terms, full_name
from common.handshake import refusals_raised
from common.login import JSON, TOKEN_STDIN, log_in, log_out, show_connections
from common.saved_connections import SavedConnections

ANSWER_SECONDS = 20


@click.command("login")
@click.option("--server", "address", required=True, help="HOST:PORT of the server.")
@connection_options("device")
@TOKEN_STDIN
def login(address: str, connect: Connect, token_stdin: bool) -> None:
    """Save how a server is reached, once it has let you in; adapt, describe and benchmark then use it.

    They take the server that was saved last unless --server names another one. Options win over
    MASKVOTE_TOKEN, and both over what is saved, which goes to no other server. Your token is asked for
    unless it is given; it is kept in your configuration directory, readable by you alone.

    Example: maskvote-client login --server birds.example:7070 --ca ca.crt --token-file my.token
    """
    log_in(connect, address, token_stdin, _welcome)


@click.command("logout")
@click.option("--server", "address", help="HOST:PORT of the server, if several are saved.")
def logout(address: str | None) -> None:
    """Remove what login has saved for a server. Your token stays valid.

    Example: maskvote-client logout --server birds.example:7070
    """
    log_out(SavedConnections("device"), address)


@click.command("connections")
@JSON
def connections(as_json: bool) -> None:
    """Show the servers that login has saved, without the tokens.

    Example: maskvote-client connections
    """
    show_connections(SavedConnections("device"), as_json)


def _welcome(connection: Connection) -> str:
    method = full_name(DEVICES.methods_by_name["GetOffer"])
    with connection.open() as channel, refusals_raised(connection):
        answer = channel.unary_unary(method)(b"", timeout=ANSWER_SECONDS, metadata=connection.metadata)
    model = decode_terms(answer)[1].model
    return f"it offers {''.join(c if c.isprintable() else ' ' for c in model)}"
