"""What the three command lines share: commands come when asked for, errors as a sentence and a status."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import click

from common.errors import InputError, MaskvoteError
from common.standard_streams import ReaderLeft, guarded_streams
from common.system_errors import sentence_of, system_error

INTERRUPTED = 130
"""The exit status after Ctrl-C, as shells have it."""
REFUSED_BY_SYSTEM = 1
"""The exit status where the operating system has no memory, no room or no access for what is done."""
OURS = frozenset({"client", "common", "protos", "server", "simulations"})
"""Our own packages: where one of their modules is not found, no installation helps."""


class Source(NamedTuple):
    """Where a command is, and what is known of it before it is imported.

    `name` is its name in `module`, `help` the first sentence of its help text.
    """

    module: str
    name: str
    help: str


class Commands(click.Group):
    """Commands that are imported when they are asked for: one command waits for no package of another's.

    A module of a command imports nothing slow either, and least of all torch: what computes is imported
    by the command itself, once all is checked that the command line alone can tell. So help texts and
    most errors come at once.

    A command that lacks a package says so when it is called; `install` is what pip is then to be given.
    """

    def __init__(self, *, sources: Mapping[str, Source], install: str, **options: Any) -> None:
        # What click itself looks at, to list commands and to suggest one for a name that is misspelt.
        outlines = {name: click.Command(name, help=source.help) for name, source in sources.items()}
        super().__init__(commands=outlines, **options)
        self.sources = sources
        self.install = install

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """The command of a name, None where there is none."""
        if name not in self.sources:
            return None
        source = self.sources[name]
        try:
            return getattr(importlib.import_module(source.module), source.name)
        except ModuleNotFoundError as error:
            self._refuse_without(name, error)
            raise

    def invoke(self, context: click.Context) -> Any:
        """Run the command that was asked for. InputError where it lacks a package."""
        try:
            return super().invoke(context)
        except ModuleNotFoundError as error:
            self._refuse_without(context.invoked_subcommand, error)
            raise

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """Parse what stands before the command. An option of the command itself is told where it goes."""
        words = list(args)
        try:
            return super().parse_args(context, args)
        except click.NoSuchOption as error:
            if error.possibilities:
                raise
            command = next((word for word in words if word in self.sources), "COMMAND")
            raise click.UsageError(
                f"There is no option {error.option_name} before the command. A command's options come "
                f"after its name: {context.command_path} {command} {error.option_name} ...",
                context,
            ) from error

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in the group's own help text, for which no command is imported."""
        click.Group(commands=self.commands).format_commands(context, formatter)

    def _refuse_without(self, name: str | None, error: ModuleNotFoundError) -> None:
        """Raise InputError where a package is missing. A module of ours that is missing is a bug."""
        if (error.name or "").split(".")[0] not in OURS:
            raise InputError(
                f"{name} needs {error.name}, which is not installed; pip install {self.install}"
            ) from error


def run(group: click.Group) -> None:
    """Run a command line: results on stdout, everything else on stderr.

    Exit status: 0 done, 2 what was given is wrong, 3 two things do not belong together, 4 the
    server's library is at fault, 5 not let in, 6 the server cannot be reached or has too much to do,
    130 stopped by Ctrl-C, 1 a bug (with its traceback), what the operating system refuses (a full
    temporary directory, too little memory), or what failed while the rest was done: images that
    `predict` could not read, devices of a fleet, cells of an experiment. 0 too where the reader of
    stdout has left, as `| head` does.
    """
    with guarded_streams():
        try:
            status = _status_of(group)
        except ReaderLeft:
            status = 0
    raise SystemExit(status)


def _status_of(group: click.Group) -> int:
    try:
        status = group.main(standalone_mode=False) or 0
        sys.stdout.flush()
        return status
    except click.exceptions.Abort:
        click.echo("stopped; what was stored stays, and the same command goes on from there", err=True)
        return INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except MaskvoteError as error:
        click.echo(f"error: {error}", err=True)
        return error.exit_status
    except KeyboardInterrupt:
        click.echo("stopped; what was stored stays, and the same command goes on from there", err=True)
        return INTERRUPTED
    except Exception as error:  # of any kind: libraries raise it from others, or in words only
        found = error if isinstance(error, PermissionError) else system_error(error)
        if found is None:
            raise
        click.echo(f"error: {sentence_of(found)}", err=True)
        return REFUSED_BY_SYSTEM


def remark(sentence: str) -> None:
    """A sentence on stderr, for whoever watches; nothing if it is empty."""
    if sentence:
        click.echo(sentence, err=True)


def show_json(data: Mapping[str, Any] | Sequence[Any]) -> None:
    """JSON on stdout, for scripts."""
    click.echo(json.dumps(data, indent=2))


def settings_option(*names: str, **options: Any) -> Callable:
    """A click option that shows its default in the help text."""
    return click.option(*names, show_default=True, **options)
