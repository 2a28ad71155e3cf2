"""A task's data: labelled images to train on and to judge by, and how they are read from a directory."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from common.backbone import Backbone
from common.errors import TaskDataError
from common.hold_out import judging
from common.image_reading import IMAGE_SUFFIXES
from common.images import PIXEL_BYTES, FileImages, LabelledImages, PixelCache


@dataclass(frozen=True)
class Task:
    """A device's classification problem. `train` and `evaluation` share no image.

    Raises TaskDataError for fewer than two classes, or one without images, and as `check_class_names`.
    """

    classes: tuple[str, ...]
    train: LabelledImages
    evaluation: LabelledImages

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            raise TaskDataError(
                f"a task of {len(self.classes)} class ({', '.join(self.classes)}): there is nothing "
                "to tell apart; give images of at least two classes"
            )
        check_class_names(self.classes)
        counts = torch.bincount(self.train.labels, minlength=len(self.classes))
        lacking = [self.classes[k] for k in torch.nonzero(counts == 0).flatten().tolist()]
        if lacking:
            raise TaskDataError(f"no training image of class {', '.join(lacking)}; add some")
        if not len(self.evaluation):
            raise TaskDataError("no image judges the network; add some to val/, or leave val/ out")


def check_class_names(classes: Sequence[str]) -> None:
    """Raise TaskDataError for names that no file can hold: empty, of several lines, no text, or twice."""
    wrong = [name for name in classes if not _is_a_line(name)]
    twice = sorted({name for name in classes if classes.count(name) > 1} - {*wrong})
    if wrong or twice or not classes:
        raise TaskDataError(
            f"class names {[*wrong, *twice][:3]} of {len(classes)} cannot be kept with the network; each "
            "is one line of text, and no two are the same: rename those"
        )


def _is_a_line(name: object) -> bool:
    try:
        return isinstance(name, str) and name.encode().count(b"\n") == 0 and name.strip() != ""
    except UnicodeEncodeError:  # a file name that is no text
        return False


def load_folder(path: Path, backbone: Backbone, pixel_bytes: int = PIXEL_BYTES) -> Task:
    """The task in a directory of `train/CLASS/*.png|jpg` and, optionally, `val/CLASS/...`.

    Classes are the sub-directories of `train`, by name. Without `val`, about a fifth of the images of
    `train` judge, of each class at least one: which, the name of each decides, see `judging`. At most
    `pixel_bytes` of decoded images are kept in memory; the others are read each time that they are
    asked for. Raises TaskDataError for a directory, class or file that is no use.
    """
    path = Path(path)
    train_path = path / "train"
    if not train_path.is_dir():
        raise TaskDataError(
            f"{train_path} is not a directory; put images into {path}/train/CLASS/*.png|jpg"
        )
    classes = tuple(sorted(entry.name for entry in train_path.iterdir() if entry.is_dir()))
    if not classes:
        raise TaskDataError(f"{train_path} has no class directories; make one for each class")
    train = _files(train_path, classes)
    if (path / "val").is_dir():
        strange = sorted(
            {entry.name for entry in (path / "val").iterdir() if entry.is_dir()} - {*classes}
        )
        if strange:
            raise TaskDataError(
                f"{path / 'val'} has classes that {train_path} lacks: {', '.join(strange)}; train on "
                "them too, or remove them"
            )
        evaluation = _files(path / "val", classes)
    else:
        train, evaluation = _hold_out(train, classes)
    cache = PixelCache(pixel_bytes)
    parts = (FileImages(*files, backbone, cache) for files in (train, evaluation))
    return Task(classes, *parts)


Files = tuple[list[Path], list[int]]


def _files(path: Path, classes: Sequence[str]) -> Files:
    paths, labels, empty = [], [], []
    for label, name in enumerate(classes):
        found = sorted(
            file
            for file in (path / name).glob("*")
            if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
        )
        if not found:
            empty.append(str(path / name))
        paths += found
        labels += [label] * len(found)
    if empty:
        raise TaskDataError(
            f"no image (*.png, *.jpg) in {', '.join(empty)}; add images or remove the class"
        )
    return paths, labels


def _hold_out(files: Files, classes: Sequence[str]) -> tuple[Files, Files]:
    """Those that train, and those that judge."""
    keys = [os.fsencode(f"{classes[label]}/{path.name}") for path, label in zip(*files, strict=True)]
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
