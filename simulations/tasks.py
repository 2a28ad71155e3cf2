"""Tasks for simulations: subsets of a pool of classes, drawn at random or close to each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from common.backbone import Backbone
from common.errors import TaskDataError
from common.image_reading import read_image
from common.images import PixelImages, pixel_transform
from common.task_data import Task
from common.task_folder import TaskFolder, read_task_folder
from simulations.domains import DOMAINS

Watch = Callable[[int, int], None]
"""Called with what is done and what there is to do."""

Kind = Literal["close", "random"]
"""How a task's classes lie to each other."""


@dataclass(frozen=True)
class TaskChoice:
    """A task before its data: its name, the classes of the pool that it tells apart, and their domain."""

    name: str
    classes: tuple[int, ...]
    domain: str = "plain"

    def relatedness(self, other: TaskChoice) -> float:
        """The share of classes in common (intersection over union), in [0, 1]; half in another domain."""
        mine, theirs = set(self.classes), set(other.classes)
        same = 1.0 if self.domain == other.domain else 0.5
        return same * len(mine & theirs) / len(mine | theirs)


@dataclass(frozen=True)
class ClassPool:
    """Classes with their images as pixels, uint8 (n, C, H, W) each, in a meaningful order.

    Neighbours in that order are semantically close. `train` and `evaluation` share no image.
    """

    names: tuple[str, ...]
    train: tuple[Tensor, ...]
    evaluation: tuple[Tensor, ...]
    backbone: Backbone

    @property
    def all_classes(self) -> TaskChoice:
        """The task of every class."""
        return TaskChoice("all", tuple(range(len(self.names))))

    def task(
        self, choice: TaskChoice, *, owners: int = 1, owner: int = 0, images: int | None = None
    ) -> Task:
        """The task of some classes.

        Training images are dealt to `owners`, so that two of them never share one; `images` is the
        most that each class keeps. All owners are judged by the same evaluation images.
        """
        shift = DOMAINS[choice.domain]
        train = [shift(self.train[k][owner::owners][:images]) for k in choice.classes]
        evaluation = [shift(self.evaluation[k]) for k in choice.classes]
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
    tasks = []
    for number in range(count):
        kind: Kind = "random" if number % 2 else "close"
        chosen = draw_classes(classes, ways, kind, generator)
        tasks.append(TaskChoice(f"{prefix}{number:02d}-{kind}", chosen))
    return tasks


def draw_mixture(
    classes: int, count: int, ways: Sequence[int], generator: np.random.Generator, prefix: str
) -> list[TaskChoice]:
    """`count` tasks as a fleet brings them: close and random by turns, a pair of each number of classes
    after the other, every fourth in a domain of its own; the domains come one after the other.

    These are not crossed: of two numbers of classes, random tasks of the second are all in another
    domain, and no others. The first n of a longer list are a list of n. Errors as of `draw_tasks`.
    """
    shifted = [name for name in DOMAINS if name != "plain"]
    tasks = []
    for number in range(count):
        kind: Kind = "random" if number % 2 else "close"
        size = ways[number // 2 % len(ways)]
        domain = shifted[number // 4 % len(shifted)] if number % 4 == 3 else "plain"
        chosen = draw_classes(classes, size, kind, generator)
        tasks.append(TaskChoice(f"{prefix}{number:03d}-{kind}-{size}-{domain}", chosen, domain))
    return tasks


def draw_library(classes: int, count: int) -> list[TaskChoice]:
    """A run's library: tasks of ten and five classes, the same for all runs with so many `classes`."""
    return draw_mixture(classes, count, (10, 5), np.random.default_rng(0), "library")


def draw_new(classes: int, count: int, seeds: int, kinds: Sequence[str]) -> list[tuple[int, TaskChoice]]:
    """A run's devices: `count` tasks of each kind and seed, with their seed.

    Kinds are "new", of ten classes, "fresh", of ten again, "five", of five, and "shifted", of ten random
    ones in another domain.
    """
    drawn: list[tuple[int, TaskChoice]] = []
    for seed in range(seeds):
        lots = [np.random.default_rng([1000 + seed, number]) for number in range(4)]
        if "new" in kinds:
            drawn += [(seed, c) for c in draw_tasks(classes, count, 10, lots[0], f"new{seed}-")]
        if "fresh" in kinds:
            drawn += [(seed, c) for c in draw_tasks(classes, count, 10, lots[3], f"fresh{seed}-")]
        if "five" in kinds:
            drawn += [(seed, c) for c in draw_tasks(classes, count, 5, lots[1], f"five{seed}-")]
        if "shifted" in kinds:
            mixture = draw_mixture(classes, 4 * count, (10,), lots[2], f"shifted{seed}-")
            drawn += [(seed, c) for c in mixture if c.domain != "plain"]
    return drawn


def draw_classes(classes: int, ways: int, kind: Kind, generator: np.random.Generator) -> tuple[int, ...]:
    """`ways` of the classes, in ascending order: any, or every other of a window of their order.

    Raises TaskDataError where there are too few classes.
    """
    window = 2 * ways
    if classes < window:
        raise TaskDataError(
            f"{classes} classes are too few for close tasks of {ways}; at least {window} are needed"
        )
    if kind == "close":
        start = int(generator.integers(0, classes - window + 1))
        chosen = start + generator.choice(window, ways, replace=False)
    else:
        chosen = generator.choice(classes, ways, replace=False)
    return tuple(sorted(chosen.tolist()))


def pool_folder(path: Path) -> TaskFolder:
    """The images of classes that tasks are drawn from, none of them opened.

    Raises TaskDataError for a directory without `train` or `val`, and as `read_task_folder`.
    """
    path = Path(path)
    for part in ("train", "val"):
        if not (path / part).is_dir():
            raise TaskDataError(
                f"{path / part} is not a directory; put images into {path}/train/CLASS/ and "
                f"{path}/val/CLASS/"
            )
    return read_task_folder(path)


def read_pool(path: Path, backbone: Backbone, watch: Watch | None = None) -> ClassPool:
    """The classes of a directory of `train/CLASS` and `val/CLASS`, decoded into memory.

    Raises TaskDataError naming the directory or file that is no use.
    """
    folder = pool_folder(path)
    assert folder.evaluation is not None
    to_pixels = pixel_transform(backbone)

    def read(files: Sequence[Path]) -> Tensor:
        return torch.stack([read_image(file, to_pixels) for file in files])

    names = tuple(folder.train)
    train, evaluation = [], []
    for done, name in enumerate(names):
        train.append(read(folder.train[name]))
        evaluation.append(read(folder.evaluation[name]))
        if watch is not None:
            watch(done + 1, len(names))
    return ClassPool(names, tuple(train), tuple(evaluation), backbone)
