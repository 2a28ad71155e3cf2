"""maskvote-server: what an operator does with a library, in its file or on the server that serves it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click

from common.address import SCHEME, Address
from common.connection_options import Connect, connection_options
from common.errors import InputError
from common.exchange import REQUEST_ID
from common.option_types import INPUT_FILE, OUTPUT_FILE
from common.progress import progress
from server import entry_tables
from server.entries import Operations
from server.entries_file import count_entries, read_entries, write_entries
from server.library import Library
from server.library_backup import back_up
from server.remote_library import RemoteLibrary

OPERATOR = "operator"
"""Who removes and restores in the library's file; on a server it is the name of a token."""


def _is_remote(library: str) -> bool:
    """Whether LIBRARY is a server's address, not a file. InputError if it is one as others have it."""
    if "://" in library:
        Address.read(library)
        return True
    address = None
    with suppress(InputError):
        address = Address.read(library)
    if address is not None and not Path(library).exists():
        raise InputError(f"there is no file {library}; for the server there, write {SCHEME}{address}")
    return False


def _in_its_file(context: click.Context, parameter: click.Parameter, library: str) -> Path:
    if "://" in library:
        raise InputError(f"{library} is no file, and this needs one; run this where its library is")
    return Path(library)


LIBRARY = click.argument("library", callback=_in_its_file)
"""Of a command that works on a library's file alone."""
ENTRY = click.argument("entry")
REASON = click.option("--reason", required=True, help="Why, for those who look later.")
NEW_FILE = click.argument("file", type=OUTPUT_FILE)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


def on_library(command: Callable) -> Callable:
    """Give a command its LIBRARY, a file or grpc://HOST:PORT, and how to reach the latter."""
    return click.argument("library")(connection_options("operator")(command))


@contextmanager
def opened(library: str, connect: Connect) -> Iterator[Operations]:
    """What LIBRARY names."""
    if _is_remote(library):
        with RemoteLibrary(connect(library)) as remote:
            yield remote
    else:
        with Library.open(library) as local:
            yield local


def entry_named(library: Operations, name: str) -> str:
    """The entry whose name begins so. InputError unless it is just one."""
    if REQUEST_ID.fullmatch(name):
        return name
    found = [facts.entry for facts in library.facts() if facts.entry.startswith(name)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise InputError(f"there is no entry {name[:40]!r}; list the entries to see those there are")
    raise InputError(
        f"{len(found)} entries begin with {name!r}: {', '.join(found[:3])}"
        f"{', ...' if len(found) > 3 else ''}; give more of the name"
    )


@click.command("list")
@on_library
@JSON
def list_entries(library: str, connect: Connect, as_json: bool) -> None:
    """List the entries of LIBRARY, a file or grpc://HOST:PORT, in the order they came.

    Example: maskvote-server list birds.db
    """
    with opened(library, connect) as operations:
        entry_tables.show_entries(library, operations.facts(), operations.structure, as_json)
        if isinstance(operations, Library):
            _warn_of_damage(operations)


def _warn_of_damage(library: Library) -> None:
    for entry in library.damaged:
        click.echo(f"warning: entry {entry} is damaged and takes no part", err=True)


@click.command("show")
@on_library
@ENTRY
@JSON
def show_entry(library: str, entry: str, connect: Connect, as_json: bool) -> None:
    """Show one ENTRY of LIBRARY: its facts, its signature in numbers, its neighbours, its mask.

    The first digits of its name are enough where no other entry's begin so.

    Example: maskvote-server show birds.db 1d8f
    """
    with opened(library, connect) as operations:
        name = entry_named(operations, entry)
        entry_tables.show_entry(operations.entry(name), operations.facts_of(name), as_json)


@click.command("remove")
@on_library
@ENTRY
@REASON
def remove_entry(library: str, entry: str, connect: Connect, reason: str) -> None:
    """Take an ENTRY of LIBRARY out of all votes from now on. It stays, and can be restored.

    Example: maskvote-server remove birds.db 1d8f --reason "these are fish"
    """
    with opened(library, connect) as operations:
        facts = operations.remove(entry_named(operations, entry), OPERATOR, reason)
    assert facts.removed is not None
    click.echo(
        f"entry {facts.entry} takes no part in votes: removed at "
        f"{entry_tables.in_seconds(facts.removed.at)} by {facts.removed.by}: {facts.removed.reason}"
    )


@click.command("restore")
@on_library
@ENTRY
@REASON
def restore_entry(library: str, entry: str, connect: Connect, reason: str) -> None:
    """Let a removed ENTRY of LIBRARY vote again.

    Example: maskvote-server restore birds.db 1d8f --reason "they are kingfishers"
    """
    with opened(library, connect) as operations:
        facts = operations.restore(entry_named(operations, entry), OPERATOR, reason)
    click.echo(f"entry {facts.entry} takes part in votes")


@click.command("backup")
@LIBRARY
@NEW_FILE
def back_up_library(library: Path, file: Path) -> None:
    """Copy LIBRARY, whole and checked, to the new FILE. It may be served meanwhile.

    Example: maskvote-server backup birds.db birds.backup
    """
    with Library.open(library) as opened, progress() as bars:
        bar = bars.add_task("Copying", total=None)

        def watch(done: int, total: int) -> None:
            bars.update(bar, completed=done, total=total)

        entries = back_up(opened, file, watch)
        _warn_of_damage(opened)
    click.echo(f"{file}: {entries:,} entries, {file.stat().st_size:,} bytes")


@click.command("export")
@on_library
@NEW_FILE
def export_entries(library: str, file: Path, connect: Connect) -> None:
    """Write the entries of LIBRARY that are not removed to FILE, to import them elsewhere.

    Example: maskvote-server export birds.db birds.entries
    """
    with opened(library, connect) as operations, progress() as bars:
        total = operations.statistics().voting
        count = write_entries(file, bars.track(operations.export(), total, description="Exporting"))
    click.echo(f"{file}: {count:,} entries")


@click.command("import")
@on_library
@click.argument("file", type=INPUT_FILE)
def import_entries(library: str, file: Path, connect: Connect) -> None:
    """Add the entries in FILE to LIBRARY, which is of the same backbone and probe.

    Those that are there already are left alone: the same command goes on where it stopped.

    Example: maskvote-server import birds.db birds.entries
    """
    total = count_entries(file)
    with opened(library, connect) as operations, progress() as bars:
        entries = read_entries(file, operations.structure)
        added, present = operations.take_in(bars.track(entries, total, description="Importing"))
    click.echo(f"{library}: {added:,} entries added, {present:,} were there already")


@click.command("statistics")
@on_library
@JSON
def show_statistics(library: str, connect: Connect, as_json: bool) -> None:
    """Show in numbers what LIBRARY holds.

    Example: maskvote-server statistics birds.db
    """
    with opened(library, connect) as operations:
        entry_tables.show_statistics(library, operations.statistics(), as_json)
