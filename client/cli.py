"""maskvote-client: adapt a sub-network to this device's task, export it, and classify images with it."""

from __future__ import annotations

import importlib
import os

# gRPC writes what it does on the terminal unless told not to before it is imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import click

from common.command_line import run, settings_option
from common.errors import InputError

COMMANDS = {
    "describe": ("client.describe_cli", "describe_command"),
    "adapt": ("client.adapt_cli", "adapt_command"),
    "benchmark": ("client.benchmark_cli", "benchmark_command"),
    "evaluate": ("client.network_cli", "evaluate"),
    "export": ("client.network_cli", "export"),
    "predict": ("client.predict_cli", "predict"),
}
"""Command -> the module that has it, and its name there."""
WITHOUT_TORCH = {"predict"}


class Commands(click.Group):
    """Commands that are imported when they are asked for: a device that only predicts needs no torch."""

    def list_commands(self, context: click.Context) -> list[str]:
        """The names of all commands."""
        return sorted(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """The command of a name. One that lacks a package says so when it is called."""
        if name not in COMMANDS:
            return None
        module, attribute = COMMANDS[name]
        try:
            return getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            return _lacking(name, error)


def _lacking(name: str, error: ModuleNotFoundError) -> click.Command:
    if (error.name or "").split(".")[0] in ("client", "common", "protos"):
        raise error

    def refuse() -> None:
        raise InputError(
            f"{name} needs {error.name}, which is not installed; pip install maskvote"
        ) from error

    return click.Command(
        name,
        callback=refuse,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
        add_help_option=False,
        help=f"Needs {error.name}, which is not installed.",
    )


@click.group(cls=Commands)
@click.version_option(package_name="maskvote")
@settings_option("--threads", default=0, help="CPU threads; 0 leaves it to torch.")
@click.pass_context
def cli(context: click.Context, threads: int) -> None:
    """Get a sub-network for this device's task, fine-tune it here, and give its mask back."""
    context.obj = threads
    if threads and context.invoked_subcommand not in WITHOUT_TORCH:
        import torch

        torch.set_num_threads(threads)


def main() -> None:
    """The console script."""
    run(cli)
