"""The options of commands that take part with a task: what is asked for, and by which way."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from client.budget_options import LIMITS, budget_of, budget_options
from client.latency_table import MeasuredTable, read_latency_table
from client.patience import DEFAULT_SECONDS, Patience
from common.address import Address
from common.budget import Budget
from common.command_line import settings_option
from common.connection_options import Connect, connection_options
from common.errors import InputError
from common.exchange import METHODS, Method
from common.grpc_channel import Connection
from common.image_folders import TYPES_IN_WORDS
from common.memory_limit import PIXEL_BYTES, MemoryLimit
from common.option_types import INPUT_FILE
from common.privacy import DEFAULT_DELTA, Privacy
from common.task_data import Task, load_folder, task_files

if TYPE_CHECKING:
    from common.backbone import Backbone

PATH = click.Path(path_type=Path)

OFFER = click.option(
    "--offer", "offer_file", type=INPUT_FILE, help="What the server wrote with `maskvote-server offer`."
)

OF_BUDGET = (*LIMITS, "method", "epsilon", "delta")
OF_SERVER = ("patience", "ca", "token_file", "certificate", "key", "insecure")
"""Names of the parameters of `asking`, and of those of `through_server` that are never needed."""
GIVEN = (ParameterSource.COMMANDLINE, ParameterSource.DEFAULT_MAP)
"""Where a value comes from that somebody chose: on this command line, or by logging in before."""
OF_FILES = ("offer_file", "assignment_file")
"""Names of the parameters of a command that takes part by files."""


@dataclass(frozen=True)
class Asked:
    """What is asked for: a sub-network of a budget for the task in this data, by a method.

    With an epsilon, the request is differentially private towards the images.
    """

    data: str
    limits: Mapping[str, Any]
    """The budget's options; see `client.budget_options`."""
    method: Method
    epsilon: float | None = None
    delta: float | None = None

    @property
    def privacy(self) -> Privacy | None:
        """What the request guarantees of the images, None for nothing. InputError if it cannot."""
        if self.epsilon is not None:
            return Privacy(self.epsilon, DEFAULT_DELTA if self.delta is None else self.delta)
        if self.delta is not None:
            raise InputError(
                f"--delta is {self.delta:g} and there is no --epsilon; give both, or neither"
            )
        return None

    @cached_property
    def table(self) -> MeasuredTable | None:
        """What this device measured of itself, where it is given. Errors as of `read_latency_table`."""
        file = self.limits["latency_table"]
        return None if file is None else read_latency_table(file)

    @cached_property
    def budget(self) -> Budget:
        """The budget. BudgetError if it is none; see `budget_of`."""
        return budget_of(self.limits, self.table)

    def check(self) -> None:
        """Raise what can be told of it without the data: errors as of `budget` and `privacy`."""
        _ = self.budget, self.privacy

    def check_data(self) -> None:
        """Raise TaskDataError unless there is a task in the directory of the data, as far as names tell.

        Whether torchvision has a data set is seen when it is loaded.
        """
        if not self._of_torchvision:
            task_files(Path(self.data))

    @property
    def place(self) -> Path | str:
        """Where the data is, from wherever it is asked."""
        return self.data if self._of_torchvision else Path(self.data).absolute()

    @property
    def _of_torchvision(self) -> bool:
        return self.data.startswith("torchvision:")

    def task(self, backbone: Backbone, max_memory: float | None = None) -> Task:
        """The task. TaskDataError where the data is no use.

        As many images are kept decoded as a memory limit, in bytes, leaves room for.
        """
        pixels = PIXEL_BYTES if max_memory is None else MemoryLimit(max_memory).pixel_bytes
        if not self._of_torchvision:
            return load_folder(Path(self.data), backbone, pixels)
        from common.torchvision_data import load_torchvision

        _, name, *root = self.data.split(":", 2)
        found = load_torchvision(name, Path(root[0] if root else "."), backbone, pixels)
        return Task(found.classes, found.train, found.evaluation)


@dataclass(frozen=True)
class Server:
    """A server to take part through, how it is reached, and where the finished steps are remembered."""

    address: str
    state: Path | None
    patience_seconds: float
    connect: Connect

    def check(self) -> None:
        """Raise what can be told of it before it is called: errors as of `connection` and Patience."""
        _ = self.connection, Patience(self.patience_seconds)

    @cached_property
    def connection(self) -> Connection:
        """How it is reached. InputError for an address, a token or certificates that are no use."""
        return self.connect(self.address)


def asking(command: Callable) -> Callable:
    """Give a command the options that say what is asked for; it gets them as one: `asked`."""

    @click.option(
        "--data",
        required=True,
        help=f"Directory with images ({TYPES_IN_WORDS}) in train/CLASS/ (and val/), or "
        "torchvision:NAME:DIRECTORY.",
    )
    @budget_options
    @settings_option("--method", type=click.Choice(METHODS), default="smsp")
    @click.option(
        "--epsilon",
        type=float,
        help="Make the request differentially private, with noise: 8 is a usual choice, less is more.",
    )
    @click.option("--delta", type=float, help=f"Delta of that guarantee.  [default: {DEFAULT_DELTA:g}]")
    @functools.wraps(command)
    def with_asked(
        *arguments: Any,
        data: str,
        method: Method,
        epsilon: float | None,
        delta: float | None,
        **options: Any,
    ) -> Any:
        limits = {name: options.pop(name) for name in LIMITS}
        asked = Asked(data, limits, method, epsilon, delta)
        return command(*arguments, asked=asked, **options)

    return with_asked


def through_server(command: Callable) -> Callable:
    """Give a command the options of a server; it gets them as one: `server`, None without `--server`."""

    @click.option("--server", "address", callback=_checked_address, help="HOST:PORT of a server to take "
                  "part through; without it, the one that you logged in to last.")  # fmt: skip
    @click.option("--state", type=PATH, help="Directory that remembers which steps are done.")
    @settings_option(
        "--patience", default=DEFAULT_SECONDS, help="Seconds to go on trying if it does not answer."
    )
    @connection_options("device")
    @functools.wraps(command)
    def with_server(
        *arguments: Any,
        address: str | None,
        state: Path | None,
        patience: float,
        connect: Connect,
        **options: Any,
    ) -> Any:
        if address is None:
            address = _saved_address(connect)
        server = None if address is None else Server(address, state, patience, connect)
        return command(*arguments, server=server, **options)

    return with_server


def _checked_address(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    return None if value is None else str(Address.read(value))


def _saved_address(connect: Connect) -> str | None:
    """The server that was logged in to last; None if there is none, or if one takes part by files."""
    context = click.get_current_context()
    if any(context.get_parameter_source(name) is ParameterSource.COMMANDLINE for name in OF_FILES):
        return None
    if (saved := connect.saved.newest()) is None:
        return None
    context.set_parameter_source("address", ParameterSource.DEFAULT_MAP)
    click.echo(f"through {saved.address}, to which you logged in", err=True)
    return saved.address


@dataclass(frozen=True)
class Way:
    """A way of taking part: the parameters that it needs, and those that belong to it alone."""

    name: str
    needs: tuple[str, ...]
    takes: tuple[str, ...] = ()


def check_way(*ways: Way) -> None:
    """Raise InputError unless this command line has the options of one way, and all that it needs."""
    context = click.get_current_context()
    flags = {name: parameter.opts[0] for parameter in context.command.params if (name := parameter.name)}
    given = [n for n in flags if context.get_parameter_source(n) in GIVEN]
    all_ways = " or ".join(f"{way.name} ({', '.join(flags[n] for n in way.needs)})" for way in ways)
    chosen = {way.name: [n for n in given if n in way.needs + way.takes] for way in ways}
    chosen = {name: parameters for name, parameters in chosen.items() if parameters}
    if len(chosen) > 1:
        clash = " and ".join(flags[parameters[0]] for parameters in chosen.values())
        raise InputError(f"{clash} do not go together: take part either {all_ways}")
    missing = [flags[n] for way in ways if way.name in chosen for n in way.needs if n not in given]
    if missing or not chosen:
        raise InputError(f"{', '.join(missing) or 'how'} is not given: take part either {all_ways}")
