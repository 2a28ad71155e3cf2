"""What can be done with a network that a device has kept: judge it, and hand it to other programs."""

from __future__ import annotations

from pathlib import Path

import click
import torch

from client.artefacts.card import card_path
from client.artefacts.card_words import sentences_of
from client.artefacts.exporting import Judges, export_artefact
from client.artefacts.facts import found_by
from client.artefacts.kinds import SUFFIXES, check_suffix
from client.artefacts.torch_network import logits_of
from client.export import SavedNetwork, load_network
from client.task_options import JSON, PATH
from common.command_line import progress, remark, show_json
from common.errors import MismatchError
from common.image_folders import TYPES_IN_WORDS
from common.tables import show
from common.task_data import Task, load_folder

NETWORK = click.option(
    "--network",
    "network_file",
    required=True,
    type=PATH,
    help="What `maskvote-client adapt --save` wrote, or network.safetensors of a --state.",
)
NAMED_AT_MOST = 10
"""Classes that a sentence names."""


@click.command()
@NETWORK
@click.option(
    "--data",
    required=True,
    type=PATH,
    help=f"Directory with images ({TYPES_IN_WORDS}) in train/CLASS/ (and val/), as for adapt.",
)
@JSON
def evaluate(network_file: Path, data: Path, as_json: bool) -> None:
    """Tell how many of a task's evaluation images a kept network classifies right, by class.

    These are the images of val/, or where there is none the fifth or so of train/ that adapt keeps
    apart. The classes must be those of the network, by name.

    Example: maskvote-client evaluate --network my.safetensors --data mine
    """
    saved = load_network(network_file)
    task = load_folder(data, saved.backbone)
    remark(task.left_out)
    logit_of = torch.tensor(_logits_of(task, saved, data, network_file))
    labels = task.evaluation.labels
    with progress() as bars:
        bar = bars.add_task("Classifying", total=len(labels))
        logits = logits_of(saved.network)
        found = found_by(logits, task.evaluation, lambda done: bars.update(bar, completed=done))
    right = labels[found == logit_of[labels]]
    accuracy = len(right) / len(labels)
    counts = [
        (name, int((labels == label).sum()), int((right == label).sum()))
        for label, name in enumerate(task.classes)
    ]
    if as_json:
        classes = [
            {"class": name, "images": images, "right": hits, "accuracy": hits / images}
            for name, images, hits in counts
        ]
        show_json({"images": len(labels), "accuracy": accuracy, "classes": classes})
        return
    show(
        f"{network_file} classifies {accuracy:.1%} of {len(labels):,} images right",
        ["class", "images", "right", "accuracy"],
        [[name, f"{images:,}", f"{hits:,}", f"{hits / images:.1%}"] for name, images, hits in counts],
    )


def _logits_of(task: Task, saved: SavedNetwork, data: Path, network_file: Path) -> list[int]:
    """Which of the network's logits is whose, class by class of the task.

    MismatchError where the network has other classes.
    """
    lacking = sorted({*saved.classes} - {*task.classes})
    strange = sorted({*task.classes} - {*saved.classes})
    if lacking or strange:
        found = [f"has {_few(strange)}, which the network does not know"] if strange else []
        found += [f"lacks {_few(lacking)}"] if lacking else []
        raise MismatchError(
            f"{data} has other classes than {network_file}: it {' and '.join(found)}; give images of "
            "the network's classes, or adapt a network to these"
        )
    return [saved.classes.index(name) for name in task.classes]


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
@click.option("--out", required=True, type=PATH, help="Write the network to this file.")
@click.option(
    "--data",
    type=PATH,
    help=f"Directory with images ({TYPES_IN_WORDS}) in train/CLASS/ (and val/), as for adapt: measures "
    "the accuracy; onnx-int8 needs it.",
)
@JSON
def export(network_file: Path, kind: str, out: Path, data: Path | None, as_json: bool) -> None:
    """Write a kept network as a file for other programs, with a card in JSON beside it.

    An ONNX file takes `images`, float32 (N, C, H, W), and gives `logits`, float32 (N, K). Images are
    normalised before: (pixel / 255 - mean) / std. It is written only if onnxruntime gives the logits
    that torch gives, and needs: pip install "maskvote[onnx]". onnx-int8 is smaller and mostly faster;
    images of train/ calibrate it, those of val/ judge it. executorch needs: pip install
    "maskvote[executorch]". The card says what the network is, and what was measured of it here.

    Example: maskvote-client export --network my.safetensors --format onnx --out my.onnx --data mine
    """
    check_suffix(out, kind)
    saved = load_network(network_file)
    judges = None
    if data is not None:
        task = load_folder(data, saved.backbone)
        remark(task.left_out)
        judges = Judges(task, tuple(_logits_of(task, saved, data, network_file)))
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
