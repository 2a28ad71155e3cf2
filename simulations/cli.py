"""maskvote-sim: the demo, fleets on your own photographs, experiments, and pictures of a run."""

from __future__ import annotations

import click

from common.command_line import Commands, Source, run

COMMANDS = {
    "demo": Source("simulations.fleet_cli", "demo",
                   "The whole story in a few minutes, with nothing to download."),
    "fleet": Source("simulations.fleet_cli", "fleet",
                    "A fleet on your own photographs: library and devices share classes, but no training "
                    "image."),
    "plot": Source("simulations.plot_cli", "plot",
                   "Draw the curves of a run from its RECORD, and print its tables."),
    "pretrain": Source("simulations.pretrain_cli", "pretrain_command",
                       "Train a timm backbone from random weights, and write them as a checkpoint."),
    "experiment": Source("simulations.experiment_cli", "experiment",
                         "Measure what the experiments called NAME need, or all of them; without a NAME, "
                         "tell what there is."),
    "report": Source("simulations.report_cli", "report",
                     "Write one page of what every RUN measured: figures, tables, tests, and what "
                     "holds."),
}  # fmt: skip


@click.group(cls=Commands, sources=COMMANDS, install='"maskvote[simulation]"')
@click.version_option(package_name="maskvote")
def cli() -> None:
    """Simulate fleets of devices on one machine."""


def main() -> None:
    """The console script."""
    run(cli)
