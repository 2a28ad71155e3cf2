"""What can be done with a network that a device has kept: judge it, and hand it to other programs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np

from client.artefacts.card import card_path
from client.artefacts.card_words import sentences_of
from client.artefacts.evaluation import logits_in
from client.artefacts.kinds import SUFFIXES, check_calibration, check_suffix
from client.artefacts.runnable import open_artefact
from client.saved_header import classes_of
from common.calibration import calibration_of
from common.command_line import remark, show_json
from common.errors import MismatchError
from common.image_folders import TYPES_IN_WORDS
from common.option_types import INPUT_FILE, JSON, OUTPUT_FILE
from common.progress import progress
from common.tables import show
from common.task_data import load_folder, task_files
from common.threads_option import THREADS, compute_with

PATH = click.Path(path_type=Path)
NETWORK = click.option(
    "--network",
    "network_file",
    required=True,
    type=INPUT_FILE,
    help="What `maskvote-client adapt --save` wrote, or network.safetensors of a --state.",
)
ARTEFACT = click.option(
    "--network",
    "network_file",
    required=True,
    type=INPUT_FILE,
    help="What `maskvote-client export` wrote (.onnx, .safetensors, .pte), or `adapt --save`.",
)
NAMED_AT_MOST = 10
"""Classes that a sentence names."""


@click.command()
@ARTEFACT
@click.option(
    "--data",
    required=True,
    type=PATH,
    help=f"Directory with images ({TYPES_IN_WORDS}) in train/CLASS/ (and val/), as for adapt.",
)
@THREADS
@JSON
def evaluate(network_file: Path, data: Path, threads: int, as_json: bool) -> None:
    """Tell how many of a task's evaluation images a kept network classifies right, by class.

    It also tells how far its probabilities can be believed: the expected calibration error.
    These are the images of val/, or where there is none the fifth or so of train/ that adapt keeps
    apart. The classes must be those of the network, by name. An .onnx file needs onnxruntime alone, and
    no torch.

    Example: maskvote-client evaluate --network my.safetensors --data mine
    """
    files = task_files(data)
    remark(files.left_out)
    runnable = open_artefact(network_file, threads)
    logit_of = np.array(_logits_of(files.classes, runnable.classes, data, network_file))
    images, labels = files.evaluation[0], np.array(files.evaluation[1])
    with progress() as bars:
        bar = bars.add_task("Classifying", total=len(images))
        logits = logits_in(runnable, images, lambda done: bars.update(bar, completed=done))
    right = labels[logits.argmax(axis=1) == logit_of[labels]]
    calibration = calibration_of(logits, logit_of[labels])
    accuracy = len(right) / len(labels)
    counts = [
        (name, int((labels == label).sum()), int((right == label).sum()))
        for label, name in enumerate(files.classes)
    ]
    if as_json:
        classes = [
            {"class": name, "images": images, "right": hits, "accuracy": hits / images}
            for name, images, hits in counts
        ]
        show_json(
            {
                "images": len(labels),
                "accuracy": accuracy,
                "mean_confidence": calibration.confidence,
                "expected_calibration_error": calibration.error,
                "classes": classes,
            }
        )
        return
    show(
        f"{network_file} classifies {accuracy:.1%} of {len(labels):,} images right",
        ["class", "images", "right", "accuracy"],
        [[name, f"{images:,}", f"{hits:,}", f"{hits / images:.1%}"] for name, images, hits in counts],
        f"Its largest probabilities are {calibration.confidence:.1%} on average; their expected "
        f"calibration error is {calibration.error:.3f} (from 0, the best, to 1).",
    )


def _logits_of(classes: Sequence[str], known: Sequence[str], data: Path, network_file: Path) -> list[int]:
    """Which of the network's logits is whose, class by class of the task; it knows the classes `known`.

    MismatchError where the network has other classes.
    """
    lacking = sorted({*known} - {*classes})
    strange = sorted({*classes} - {*known})
    if lacking or strange:
        found = [f"has {_few(strange)}, which the network does not know"] if strange else []
        found += [f"lacks {_few(lacking)}"] if lacking else []
        raise MismatchError(
            f"{data} has other classes than {network_file}: it {' and '.join(found)}; give images of "
            "the network's classes, or adapt a network to these"
        )
    return [known.index(name) for name in classes]


def _few(names: list[str]) -> str:
    more = f" and {len(names) - NAMED_AT_MOST} more" if len(names) > NAMED_AT_MOST else ""
    return ", ".join(map(repr, names[:NAMED_AT_MOST])) + more


@click.command()
@NETWORK
@click.option(
    "--format",
    "kind",
    required=True,
    type=click.Choice(list(SUFFIXES)),
    help="onnx and onnx-int8 run without torch; safetensors is every tensor by name.",
)
@click.option("--out", required=True, type=OUTPUT_FILE, help="Write the network to this file.")
@click.option(
    "--data",
    type=PATH,
    help=f"Directory with images ({TYPES_IN_WORDS}) in train/CLASS/ (and val/), as for adapt: measures "
    "the accuracy; onnx-int8 needs it.",
)
@THREADS
@JSON
def export(
    network_file: Path, kind: str, out: Path, data: Path | None, threads: int, as_json: bool
) -> None:
    """Write a kept network as a file for other programs, with a card in JSON beside it.

    An ONNX file takes `images`, float32 (N, C, H, W), and gives `logits`, float32 (N, K). Images are
    normalised before: (pixel / 255 - mean) / std. It is written only if onnxruntime gives the logits
    that torch gives, and needs: pip install "maskvote[onnx]". onnx-int8 is smaller and mostly faster;
    images of train/ calibrate it, those of val/ judge it. executorch needs: pip install
    "maskvote[executorch]". The card says what the network is, and what was measured of it here.

    Example: maskvote-client export --network my.safetensors --format onnx --out my.onnx --data mine
    """
    check_suffix(out, kind)
    check_calibration(kind, images=data is not None)
    logit_of: list[int] = []
    if data is not None:
        classes, known = task_files(data).classes, classes_of(network_file)
        logit_of = _logits_of(classes, known, data, network_file)

    from client.artefacts.exporting import Judges, export_artefact
    from client.export import load_network

    compute_with(threads)
    saved = load_network(network_file)
    judges = None
    if data is not None:
        task = load_folder(data, saved.backbone)
        remark(task.left_out)
        judges = Judges(task, tuple(logit_of))
    with progress() as bars:
        bar = bars.add_task("Reading", total=None)
        card = export_artefact(
            kind, out, saved, judges, lambda doing: bars.update(bar, description=doing)
        )
    if as_json:
        show_json({"written": str(out), "card": str(card_path(out)), **card})
        return
    for sentence in sentences_of(out, card):
        click.echo(sentence)
