"""maskvote-server login: try a connection to a server as its operator, and save it for later."""

from __future__ import annotations

import click

from common.connection_options import Connect, connection_options
from common.grpc_channel import Connection
from common.login import JSON, TOKEN_STDIN, log_in, log_out, show_connections
from common.saved_connections import SavedConnections
from server.remote_library import RemoteLibrary


@click.command("login")
@click.argument("server")
@connection_options("operator")
@TOKEN_STDIN
def login(server: str, connect: Connect, token_stdin: bool) -> None:
    """Save how SERVER, grpc://HOST:PORT, is reached by you as its operator, once it has let you in.

    list, show, remove and all others that take grpc://HOST:PORT then need no other option. Options win
    over MASKVOTE_TOKEN, and both over what is saved, which goes to no other server.

    Example: maskvote-server login grpc://birds.example:7070 --ca ca.crt --token-file boss.token
    """
    log_in(connect, server, token_stdin, _welcome)


@click.command("logout")
@click.argument("server", required=False)
def logout(server: str | None) -> None:
    """Remove what login has saved for SERVER. Your token stays valid.

    Example: maskvote-server logout grpc://birds.example:7070
    """
    log_out(SavedConnections("operator"), server)


@click.command("connections")
@JSON
def connections(as_json: bool) -> None:
    """Show the servers that login has saved, without the tokens.

    Example: maskvote-server connections
    """
    show_connections(SavedConnections("operator"), as_json)


def _welcome(connection: Connection) -> str:
    with RemoteLibrary(connection) as remote:
        return f"{remote.statistics().voting:,} entries vote"
