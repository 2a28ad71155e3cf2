"""Tasks for simulations: subsets of a pool of classes, drawn at random or close to each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.backbone import Backbone
from common.errors import TaskDataError
from common.task_data import IMAGE_SUFFIXES, PixelImages, Task, pixel_transform, read_pixels

Watch = Callable[[int, int], None]
"""Called with what is done and what there is to do."""


@dataclass(frozen=True)
class TaskChoice:
    """A task before its data: its name, and the classes of the pool that it tells apart."""

    name: str
    classes: tuple[int, ...]

    def relatedness(self, other: TaskChoice) -> float:
        """The share of classes in common (intersection over union), in [0, 1]."""
        mine, theirs = set(self.classes), set(other.classes)
        return len(mine & theirs) / len(mine | theirs)


@dataclass(frozen=True)
class ClassPool:
    """Classes with their images as pixels, uint8 (n, C, H, W) each, in a meaningful order.

    Neighbours in that order are semantically close. `train` and `evaluation` share no image.
    """

    names: tuple[str, ...]
    train: tuple[Tensor, ...]
    evaluation: tuple[Tensor, ...]
    backbone: Backbone

    def task(
        self, choice: TaskChoice, *, owners: int = 1, owner: int = 0, images: int | None = None
    ) -> Task:
        """The task of some classes.

        Training images are dealt to `owners`, so that two of them never share one; `images` is the
        most that each class keeps. All owners are judged by the same evaluation images.
        """
        train = [self.train[k][owner::owners][:images] for k in choice.classes]
        evaluation = [self.evaluation[k] for k in choice.classes]
        return Task(
            tuple(self.names[k] for k in choice.classes),
            self._labelled(train),
            self._labelled(evaluation),
        )

    def _labelled(self, per_class: Sequence[Tensor]) -> PixelImages:
        labels = [torch.full((len(part),), k) for k, part in enumerate(per_class)]
        return PixelImages(torch.cat(list(per_class)), torch.cat(labels), self.backbone)


def draw_tasks(
    classes: int, count: int, ways: int, generator: np.random.Generator, prefix: str
) -> list[TaskChoice]:
    """`count` tasks of `ways` classes out of so many: by turns close (a window of the order, one in
    two taken) and random. Raises TaskDataError where there are too few classes.
    """
    window = 2 * ways
    if classes < window:
        raise TaskDataError(
            f"{classes} classes are too few for close tasks of {ways}; at least {window} are needed"
        )
    tasks = []
    for number in range(count):
        if number % 2 == 0:
            start = int(generator.integers(0, classes - window + 1))
            chosen = start + generator.choice(window, ways, replace=False)
            kind = "close"
        else:
            chosen = generator.choice(classes, ways, replace=False)
            kind = "random"
        tasks.append(TaskChoice(f"{prefix}{number:02d}-{kind}", tuple(sorted(chosen.tolist()))))
    return tasks


def read_pool(path: Path, backbone: Backbone, watch: Watch | None = None) -> ClassPool:
    """The classes of a directory of `train/CLASS/*` and `val/CLASS/*`, decoded into memory.

    Raises TaskDataError naming the directory or file that is no use.
    """
    path = Path(path)
    for part in ("train", "val"):
        if not (path / part).is_dir():
            raise TaskDataError(
                f"{path / part} is not a directory; put images into {path}/train/CLASS/ and "
                f"{path}/val/CLASS/"
            )
    names = tuple(sorted(entry.name for entry in (path / "train").iterdir() if entry.is_dir()))
    to_pixels = pixel_transform(backbone)

    def read(folder: Path) -> Tensor:
        files = sorted(f for f in folder.glob("*") if f.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise TaskDataError(f"{folder} holds no image; add some, or remove the class")
        return torch.stack([read_pixels(file, to_pixels) for file in files])

    train, evaluation = [], []
    for done, name in enumerate(names):
        train.append(read(path / "train" / name))
        evaluation.append(read(path / "val" / name))
        if watch is not None:
            watch(done + 1, len(names))
    return ClassPool(names, tuple(train), tuple(evaluation), backbone)
