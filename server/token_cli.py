"""maskvote-server token: who may call the server. Tokens are handed out where the library's file is."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from common.command_line import settings_option, show_json
from common.tables import show
from server import tokens
from server.entry_tables import in_seconds
from server.library import Library
from server.operate_cli import JSON, LIBRARY

NAME = click.argument("name")


@click.group()
def token() -> None:
    """Let devices and operators in, and out again; a server that runs heeds it at once."""


@token.command()
@LIBRARY
@NAME
@settings_option("--role", type=click.Choice(tokens.ROLES), default="device", help="What it is for.")
@JSON
def add(library: Path, name: str, role: tokens.Role, as_json: bool) -> None:
    """Print a new token for NAME, who may then call the server of LIBRARY.

    Example: maskvote-server token add birds.db kitchen > kitchen.token
    """
    with Library.open(library) as opened:
        secret = tokens.add(opened, name, role)
    if as_json:
        show_json({"name": name, "role": role, "token": secret})
    else:
        click.echo(secret)
    click.echo(f"the token of {name} is not shown again, and only its hash is kept", err=True)


@token.command("list")
@LIBRARY
@JSON
def list_tokens(library: Path, as_json: bool) -> None:
    """List the tokens that were handed out for LIBRARY, revoked ones too, but not their secrets.

    Example: maskvote-server token list birds.db
    """
    with Library.open(library) as opened:
        rows = [
            asdict(issued)
            | {
                "created": in_seconds(issued.created),
                "revoked": issued.revoked and in_seconds(issued.revoked),
            }
            for issued in tokens.tokens(opened)
        ]
    if as_json:
        show_json(rows)
        return
    columns = ["name", "role", "created", "revoked", "revoked_by"]
    show(
        str(library),
        [column.replace("_", " ") for column in columns],
        [[row[column] for column in columns] for row in rows],
    )


@token.command()
@LIBRARY
@NAME
@click.option("--remove-entries", is_flag=True, help="Take what it contributed out of all votes too.")
def revoke(library: Path, name: str, remove_entries: bool) -> None:
    """Let NAME in no more, from the next call on.

    Example: maskvote-server token revoke birds.db kitchen --remove-entries
    """
    with Library.open(library) as opened:
        removed = tokens.revoke(opened, name, remove_entries=remove_entries)
    click.echo(f"the token of {name} lets nobody in" + f"; entries removed: {removed:,}" * remove_entries)
