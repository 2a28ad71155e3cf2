"""A task's data: labelled images to train on and to judge by, and how they are read from a directory."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from common.backbone import Backbone
from common.class_names import check_class_names, composed
from common.errors import TaskDataError
from common.hold_out import judging
from common.images import PIXEL_BYTES, FileImages, LabelledImages, PixelCache
from common.task_folder import ByClass, read_task_folder


@dataclass(frozen=True)
class Task:
    """A device's classification problem. `train` and `evaluation` share no image.

    Names of classes are in NFC. `left_out` says in a sentence what of the data is no image of the task;
    it is empty for nothing. Raises TaskDataError for fewer than two classes, or one without images, and
    as `check_class_names`.
    """

    classes: tuple[str, ...]
    train: LabelledImages
    evaluation: LabelledImages
    left_out: str = ""

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            raise TaskDataError(
                f"a task of {len(self.classes)} class ({', '.join(self.classes)}): there is nothing "
                "to tell apart; give images of at least two classes"
            )
        check_class_names(self.classes)
        object.__setattr__(self, "classes", tuple(map(composed, self.classes)))
        counts = torch.bincount(self.train.labels, minlength=len(self.classes))
        lacking = [self.classes[k] for k in torch.nonzero(counts == 0).flatten().tolist()]
        if lacking:
            raise TaskDataError(f"no training image of class {', '.join(lacking)}; add some")
        if not len(self.evaluation):
            raise TaskDataError("no image judges the network; add some to val/, or leave val/ out")


def load_folder(path: Path, backbone: Backbone, pixel_bytes: int = PIXEL_BYTES) -> Task:
    """The task in a directory of images in `train/CLASS` and, optionally, `val/CLASS`.

    Classes are the sub-directories of `train`, by name; their images lie in them or anywhere below:
    which files count, see `images_below`. Without `val`, about a fifth of the images of `train` judge,
    of each class at least one: which, the name of each decides, see `judging`. At most `pixel_bytes` of
    decoded images are kept in memory; the others are read each time that they are asked for. Raises
    TaskDataError for a directory, class or file that is no use.
    """
    path = Path(path)
    folder = read_task_folder(path)
    classes = tuple(folder.train)
    train = _files(folder.train)
    if folder.evaluation is not None:
        evaluation = _files(folder.evaluation)
    else:
        train, evaluation = _hold_out(train, classes, path / "train")
    cache = PixelCache(pixel_bytes)
    training, judging_images = (FileImages(*files, backbone, cache) for files in (train, evaluation))
    return Task(classes, training, judging_images, folder.left_out.sentence(path))


Files = tuple[list[Path], list[int]]
"""Image files, and which class each is of."""


def _files(images: ByClass) -> Files:
    paths = [path for files in images.values() for path in files]
    return paths, [label for label, files in enumerate(images.values()) for _ in files]


def _hold_out(files: Files, classes: tuple[str, ...], root: Path) -> tuple[Files, Files]:
    """Those that train, and those that judge."""
    keys = [os.fsencode(composed(path.relative_to(root).as_posix())) for path in files[0]]
    train: Files = ([], [])
    held: Files = ([], [])
    for path, label, judges in zip(*files, judging(keys, files[1]), strict=True):
        into = held if judges else train
        into[0].append(path)
        into[1].append(label)
    images = Counter(files[1])
    lacking = [f"{classes[k]} (of {images[k]})" for k in sorted({*files[1]} - {*train[1]})]
    if lacking:
        raise TaskDataError(
            f"no image is left to train on of class {', '.join(lacking)}: without val/, each image's "
            "name decides whether it judges, and there all do; add another, or give a val/ directory"
        )
    return train, held
