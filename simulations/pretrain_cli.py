"""maskvote-sim pretrain: weights for a backbone, where timm's own cannot be downloaded or do not suit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from common.command_line import remark, settings_option, show_json
from common.errors import InputError
from common.files import write_whole
from common.image_folders import TYPES_IN_WORDS
from common.option_types import INPUT_FILE, OUTPUT_FILE
from common.task_data import Task
from server.model_options import DEVICE, device_named, model_options
from simulations.sources import check_source
from simulations.stages import Watch, stages

if TYPE_CHECKING:
    from common.backbone import Backbone
    from server.healing.heal import PublicImages
    from simulations.tasks import Watch as CountWatch


@click.command("pretrain")
@click.option("--backbone", "model", required=True, help="A timm model name.")
@model_options
@click.option("--data", required=True, help="Where classes come from: DIRECTORY (images in "
              f"train/CLASS/ and val/CLASS/: {TYPES_IN_WORDS}), torchvision:NAME:DIRECTORY, or "
              "glyphs.")  # fmt: skip
@click.option("--out", required=True, type=OUTPUT_FILE, help="The safetensors file.")
@click.option("--teacher", help="A timm model name: its features of the same images are learnt too.")
@click.option("--teacher-checkpoint", type=INPUT_FILE, help="Its safetensors file.")
@settings_option("--iterations", default=8000)
@settings_option("--batch-size", default=64)
@settings_option("--optimiser", type=click.Choice(["adamw", "sgd"]), default="adamw")
@settings_option("--learning-rate", default=1e-3)
@settings_option("--weight-decay", default=0.05)
@settings_option("--flips/--no-flips", default=True, help="Mirror half of the images.")
@settings_option("--shift", default=4, help="Pixels, at most, by which images are moved.")
@settings_option("--seed", default=0)
@DEVICE
@click.option("--json", "as_json", is_flag=True, help="Print a record instead of a sentence.")
def pretrain_command(
    model: str,
    num_classes: int | None,
    image_size: int | None,
    arguments: Mapping[str, Any],
    data: str,
    out: Path,
    teacher: str | None,
    teacher_checkpoint: Path | None,
    device: str | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Train a timm backbone from random weights, and write them as a checkpoint.

    Every class of the data is one of the backbone's. With --teacher it learns to tell that backbone's
    features too, which takes far fewer images than labels alone; it sees them at --image-size as well.

    Example: maskvote-sim pretrain --backbone mobilenetv3_small_100 --image-size 64 --data photographs
    --out mobilenet.safetensors --teacher resnet18 --teacher-checkpoint resnet18.safetensors
    """
    check_source(data)

    from safetensors.torch import save

    from common.backbone import Backbone
    from common.fitting import accuracy
    from common.rebuild import rebuild
    from simulations.pools import source_folder
    from simulations.pretraining import PretrainingSettings, pretrain

    device = device_named(device)
    recipe = PretrainingSettings(clip_norm=1.0, **settings)
    if (folder := source_folder(data)) is not None:
        remark(folder.left_out.sentence(data))
    with stages() as watch:
        build = partial(Backbone.from_timm, model, image_size=image_size, arguments=arguments)
        task = _all_classes(data, build(), partial(watch, "reading images"))
        if num_classes not in (None, len(task.classes)):
            raise InputError(
                f"--num-classes {num_classes}, and {data} has {len(task.classes)} classes; leave it out"
            )
        backbone = build(num_classes=len(task.classes))
        known = None
        if teacher is not None:
            known = _teacher(teacher, teacher_checkpoint, image_size, data, device, watch)
        weights = pretrain(
            backbone, task.train, recipe, partial(watch, "pre-training"), known, device=device
        )
        write_whole(out, save(weights))
        watch("judging the backbone", 0, None)
        right = accuracy(rebuild(backbone, weights).to(device), task.evaluation)
    record = {
        "backbone": backbone.model, "classes": len(task.classes), "images": len(task.train),
        "accuracy": right, "evaluation_images": len(task.evaluation), "teacher": teacher,
        "settings": asdict(recipe), "checkpoint": str(out),
    }  # fmt: skip
    if as_json:
        show_json(record)
    else:
        click.echo(
            f"{out}: {backbone.model} of {len(task.classes)} classes, {right:.1%} right of "
            f"{len(task.evaluation):,} images that it was not trained on"
        )


def _all_classes(data: str, backbone: Backbone, watch: CountWatch) -> Task:
    from simulations.pools import open_pool

    pool = open_pool(data, backbone, watch)
    return pool.task(pool.all_classes)


def _teacher(
    model: str,
    checkpoint: Path | None,
    image_size: int | None,
    data: str,
    device: str,
    watch: Watch,
) -> PublicImages:
    """The teacher's features of the images that are trained on, as it takes them itself."""
    from common.backbone import Backbone, backbone_weights, classes_of
    from server.healing.heal import PublicImages

    classes = classes_of(checkpoint, model)
    backbone = Backbone.from_timm(model, num_classes=classes, image_size=image_size)
    weights = {name: tensor.to(device) for name, tensor in backbone_weights(backbone, checkpoint).items()}
    images = _all_classes(data, backbone, partial(watch, "reading images for the teacher")).train
    return PublicImages.of(backbone, weights, images, partial(watch, "asking the teacher"))
