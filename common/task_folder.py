"""A task's directory: the image files of every class to train on, and those that judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.class_names import composed
from common.errors import TaskDataError
from common.image_folders import SUFFIXES_IN_WORDS, LeftOut, images_below, subfolders

ByClass = Mapping[str, Sequence[Path]]
"""Class name in NFC -> its image files, both in order of name; no class is without images."""


@dataclass(frozen=True)
class TaskFolder:
    """The images below `train/CLASS` and `val/CLASS` of a directory, by class.

    `evaluation` has the classes of `train`; it is None without `val`. `left_out` counts what is no image
    of the task.
    """

    train: ByClass
    evaluation: ByClass | None
    left_out: LeftOut


def read_task_folder(path: Path) -> TaskFolder:
    """The images of a task in a directory. No image is opened.

    TaskDataError where there is no `train` or no class in it, for a class without images, for one that
    only `val` has, and for two folders of one class.
    """
    train_path, evaluation_path = Path(path) / "train", Path(path) / "val"
    if not train_path.is_dir():
        raise TaskDataError(f"{train_path} is not a directory; put images into {train_path}/CLASS/")
    left_out = LeftOut()
    folders = _class_folders(train_path, left_out)
    if not folders:
        told = left_out.sentence(train_path)
        raise TaskDataError(
            f"{train_path} has no class directories; make one for each class{told and f' ({told})'}"
        )
    evaluation = None
    train = _images(folders, left_out)
    if evaluation_path.is_dir():
        judging = _class_folders(evaluation_path, left_out)
        if strange := sorted(judging.keys() - folders.keys()):
            raise TaskDataError(
                f"{evaluation_path} has classes that {train_path} lacks: {', '.join(strange)}; train on "
                "them too, or remove them"
            )
        evaluation = _images({c: judging.get(c, evaluation_path / c) for c in folders}, left_out)
    return TaskFolder(train, evaluation, left_out)


def _class_folders(path: Path, left_out: LeftOut) -> dict[str, Path]:
    """Class name in NFC -> its folder, in order of name."""
    folders: dict[str, Path] = {}
    for folder in subfolders(path, left_out):
        name = composed(folder.name)
        if name in folders:
            raise TaskDataError(
                f"{path} has two folders {name!r}, which only differ in how Unicode writes the name "
                f"({folders[name].name!a} and {folder.name!a}): put their images into one"
            )
        folders[name] = folder
    return dict(sorted(folders.items()))


def _images(folders: Mapping[str, Path], left_out: LeftOut) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    empty, left_out_of_empty = [], LeftOut()
    for name, folder in folders.items():
        here = LeftOut()
        found[name] = sorted(images_below(folder, here)) if folder.is_dir() else []
        left_out.add(here)
        if not found[name]:
            empty.append(str(folder))
            left_out_of_empty.add(here)
    if empty:
        told = left_out_of_empty.sentence("it" if len(empty) == 1 else "these")
        raise TaskDataError(
            f"no image ({SUFFIXES_IN_WORDS}) in {', '.join(empty)}; add images or remove the class"
            f"{told and f' ({told})'}"
        )
    return found
