"""maskvote-client: adapt a sub-network to this device's task, export it, and classify images with it."""

from __future__ import annotations

import click

from common.command_line import Commands, Source, run

COMMANDS = {
    "describe": Source("client.describe_cli", "describe_command",
                       "Compute the signature of a task and show all that is in the request, without "
                       "sending any of it."),
    "adapt": Source("client.adapt_cli", "adapt_command",
                    "Get a sub-network for your task, fine-tune it here, and give its mask back."),
    "benchmark": Source("client.benchmark_cli", "benchmark_command",
                        "Measure how long this device takes for an image, by sub-networks of many "
                        "sizes."),
    "evaluate": Source("client.network_cli", "evaluate",
                       "Tell how many of a task's evaluation images a kept network classifies right, by "
                       "class."),
    "export": Source("client.network_cli", "export",
                     "Write a kept network as a file for other programs, with a card in JSON beside it."),
    "predict": Source("client.predict_cli", "predict",
                      "Tell the class of each image, of files or of folders with all that is below "
                      "them."),
    "login": Source("client.login_cli", "login",
                    "Save how a server is reached, once it has let you in; adapt, describe and benchmark "
                    "then use it."),
    "logout": Source("client.login_cli", "logout",
                     "Remove what login has saved for a server."),
    "connections": Source("client.login_cli", "connections",
                          "Show the servers that login has saved, without the tokens."),
}  # fmt: skip


@click.group(cls=Commands, sources=COMMANDS, install="maskvote")
@click.version_option(package_name="maskvote")
def cli() -> None:
    """Get a sub-network for this device's task, fine-tune it here, and give its mask back."""


def main() -> None:
    """The console script."""
    run(cli)
