"""maskvote-sim report: runs as one page."""

from __future__ import annotations

from pathlib import Path

import click

from common.command_line import settings_option, show_json
from common.files import write_whole
from common.option_types import INPUT_DIRECTORY, OUTPUT_FILE
from common.progress import working


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=INPUT_DIRECTORY)
@settings_option("--out", type=OUTPUT_FILE, default=Path("report.html"))
@click.option(
    "--markdown",
    type=OUTPUT_FILE,
    help="Write this file too, for a repository; its pictures go into a directory of its name.",
)
@click.option("--json", "as_json", is_flag=True, help="Print every number too, for scripts.")
def report(runs: tuple[Path, ...], out: Path, markdown: Path | None, as_json: bool) -> None:
    """Write one page of what every RUN measured: figures, tables, tests, and what holds.

    Several runs, of different backbones, stand side by side. The page needs no other file.

    Example: maskvote-sim report runs/resnet18 runs/vit --out report.html
    """
    from simulations.experiments import EXPERIMENTS
    from simulations.report import document, page, read_runs, summary

    with working("Drawing figures"):
        found = read_runs(runs, EXPERIMENTS)
        write_whole(out, page(found).encode(errors="backslashreplace"))
        if markdown is not None:
            text = document(found, markdown.with_suffix(""), markdown.stem)
            write_whole(markdown, text.encode(errors="backslashreplace"))
    if as_json:
        show_json(summary(found))
        return
    for run in found:
        holds = [claim.holds for claim in run.claims]
        click.echo(
            f"{run.label}: {len(run.records):,} cells, {len(run.failed)} failed, {len(run.results)} "
            f"experiments; of {len(holds)} numbers to reach {holds.count('yes')} hold, "
            f"{holds.count('no')} do not"
        )
    click.echo(str(out))
