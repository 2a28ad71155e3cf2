"""maskvote-client: describe a task, adapt the sub-network that comes back, contribute its mask."""

from __future__ import annotations

import os

# gRPC writes what it does on the terminal unless told not to before it is imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import click
import torch

from client.adapt_cli import adapt_command
from client.benchmark_cli import benchmark_command
from client.describe_cli import describe_command
from client.network_cli import evaluate, export
from common.command_line import run, settings_option


@click.group()
@click.version_option(package_name="maskvote")
@settings_option("--threads", default=0, help="CPU threads; 0 leaves it to torch.")
def cli(threads: int) -> None:
    """Get a sub-network for this device's task, fine-tune it here, and give its mask back."""
    if threads:
        torch.set_num_threads(threads)


def main() -> None:
    """The console script."""
    run(cli)


cli.add_command(describe_command)
cli.add_command(adapt_command)
cli.add_command(benchmark_command)
cli.add_command(evaluate)
cli.add_command(export)
