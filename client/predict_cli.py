"""maskvote-client predict: what an artefact says of images. Nothing here imports torch."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path

import click

from client.artefacts.image_files import image_files, measured
from client.artefacts.prediction_files import Sink, file_sink, json_sink, table_sink
from client.artefacts.predictions import Failures, predictions
from client.artefacts.runnable import open_artefact
from common.command_line import remark, settings_option
from common.image_folders import SUFFIXES_IN_WORDS, LeftOut
from common.option_types import INPUT_FILE, JSON, OUTPUT_FILE
from common.progress import progress
from common.threads_option import THREADS

PATH = click.Path(path_type=Path)
SOME_FAILED = 1
"""The exit status where some images could not be read."""


@click.command(epilog=f"IMAGES are files, and folders with files that end in {SUFFIXES_IN_WORDS}.")
@click.option(
    "--network",
    "network_file",
    required=True,
    type=INPUT_FILE,
    help="What `maskvote-client export` wrote (.onnx, .safetensors, .pte), or `adapt --save`.",
)
@click.argument("images", nargs=-1, required=True, type=PATH)
@click.option("--out", type=OUTPUT_FILE, help="Write the predictions to this file, .csv or .json.")
@JSON
@settings_option("--top", type=click.IntRange(min=1), default=1, help="Classes to name for each image.")
@settings_option("--batch", type=click.IntRange(1, 4096), default=1, help="Images at a time.")
@THREADS
def predict(
    network_file: Path,
    images: tuple[Path, ...],
    out: Path | None,
    as_json: bool,
    top: int,
    batch: int,
    threads: int,
) -> int:
    """Tell the class of each image, of files or of folders with all that is below them.

    An .onnx file needs onnxruntime alone, and no torch. Images are prepared as for adapt, and read as
    they are needed: memory does not grow with their number. Those that cannot be read are named at the
    end, do not stop the others, and make the exit status 1.

    Example: maskvote-client predict --network my.onnx photos --out predictions.csv
    """
    left_out = LeftOut()
    count, widest = measured(images, left_out)
    runnable = open_artefact(network_file, threads)
    remark(left_out.sentence(", ".join(map(str, images[:3]))))
    top = min(top, len(runnable.classes))
    failures = Failures()
    with ExitStack() as opened:
        sinks: list[Sink] = []
        if out is not None:
            sinks.append(opened.enter_context(file_sink(out, top)))
        # Kept from before the bars: while they show, rich sends what is written to stdout to stderr.
        stdout = sys.stdout
        if as_json:
            sinks.append(json_sink(stdout.write))
        elif out is None:
            sinks.append(table_sink(stdout.write, top, widest, runnable.classes))
        bars = progress()
        # Predictions in a terminal show by themselves how far it is.
        bars.disable = bars.disable or (stdout.isatty() and (as_json or out is None))
        opened.enter_context(bars)
        bar = bars.add_task("Classifying", total=count)
        for prediction in predictions(
            runnable, image_files(images), failures, top, batch, lambda more: bars.advance(bar, more)
        ):
            for predicted, _ in sinks:
                predicted(prediction)
        for _, end in sinks:
            end(failures)
    if out is not None and not as_json:
        click.echo(f"{out}: {count - failures.count:,} of {count:,} images classified.")
    for _, reason in failures.reasons:
        click.echo(f"error: {reason}", err=True)
    if failures.count > len(failures.reasons):
        click.echo(f"error: and {failures.count - len(failures.reasons):,} more images", err=True)
    return SOME_FAILED if failures.count else 0
