"""A task's data: labelled images to train on and to judge by, and how they are read from a directory."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common.class_names import check_class_names, composed
from common.errors import TaskDataError
from common.hold_out import judging
from common.memory_limit import PIXEL_BYTES
from common.task_folder import ByClass, read_task_folder

if TYPE_CHECKING:
    from common.backbone import Backbone
    from common.images import LabelledImages


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
        trained = set(self.train.labels.tolist())
        lacking = [name for label, name in enumerate(self.classes) if label not in trained]
        if lacking:
            raise TaskDataError(f"no training image of class {', '.join(lacking)}; add some")
        if not len(self.evaluation):
            raise TaskDataError("no image judges the network; add some to val/, or leave val/ out")


def load_folder(path: Path, backbone: Backbone, pixel_bytes: int = PIXEL_BYTES) -> Task:
    """The task in a directory, as of `task_files`.

    At most `pixel_bytes` of decoded images are kept in memory; the others are read each time that they
    are asked for. Raises TaskDataError for a directory, class or file that is no use.
    """
    from common.images import FileImages, PixelCache

    files = task_files(path)
    cache = PixelCache(pixel_bytes)
    train, evaluation = (FileImages(*part, backbone, cache) for part in (files.train, files.evaluation))
    return Task(files.classes, train, evaluation, files.left_out)


Files = tuple[list[Path], list[int]]
"""Image files, and the class of each, in [0, K)."""


@dataclass(frozen=True)
class TaskFiles:
    """The files of a task: its classes, and the images that train and that judge. None is read yet.

    `left_out` says in a sentence what was left out; "" for nothing.
    """

    classes: tuple[str, ...]
    train: Files
    evaluation: Files
    left_out: str = ""


def task_files(path: Path) -> TaskFiles:
    """The files of a directory of images in `train/CLASS` and, optionally, `val/CLASS`.

    Classes are the sub-directories of `train`, by name; their images lie in them or anywhere below:
    which files count, see `images_below`. Without `val`, about a fifth of the images of `train` judge,
    of each class at least one: which, the name of each decides, see `judging`. Raises TaskDataError for a
    directory or class that is no use. It needs no torch.
    """
    path = Path(path)
    folder = read_task_folder(path)
    classes = tuple(folder.train)
    train = _files(folder.train)
    if folder.evaluation is not None:
        evaluation = _files(folder.evaluation)
    else:
        train, evaluation = _hold_out(train, classes, path / "train")
    return TaskFiles(classes, train, evaluation, folder.left_out.sentence(path))


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
