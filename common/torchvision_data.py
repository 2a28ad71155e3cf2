"""Data sets of torchvision as tasks, by name."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from common.backbone import Backbone
from common.errors import TaskDataError
from common.hold_out import judging
from common.images import PixelCache, StoredImages, ToPixels, pixel_transform
from common.memory_limit import PIXEL_BYTES
from common.system_errors import pass_on

Part = Sequence[tuple[Image.Image, int]]
Place = tuple[int, int]
"""Which part of a data set, and which of its images."""


@dataclass(frozen=True)
class DataSet:
    """A data set of torchvision: its classes' names, and its images to train on and to judge by."""

    classes: tuple[str, ...]
    train: StoredImages
    evaluation: StoredImages


def load_torchvision(
    name: str,
    root: Path,
    backbone: Backbone,
    pixel_bytes: int = PIXEL_BYTES,
    *,
    download: bool = True,
) -> DataSet:
    """A data set of torchvision by its class name (`CIFAR100`, `OxfordIIITPet`, ...).

    Its own training and test images are used; of one that has no such parts (`Caltech101`), about a
    fifth judge, of each class at least one: which, what each shows decides, see `judging`. Every image
    is decoded once, to learn its label; at most `pixel_bytes` of them are kept, and the others are
    decoded each time that they are asked for. Raises TaskDataError for a name that torchvision does not
    know, or one that can be neither found under `root` nor downloaded.
    """
    from torchvision import datasets

    kind = getattr(datasets, name, None)
    if not (isinstance(kind, type) and issubclass(kind, datasets.VisionDataset)):
        raise TaskDataError(f"torchvision has no data set {name!r}; see torchvision.datasets")
    try:
        parts: list[Any] = [kind(str(root), download=download, **chosen) for chosen in _parts_of(kind)]
    except (RuntimeError, OSError, TypeError, ValueError, ImportError) as error:
        pass_on(error)
        raise TaskDataError(
            f"{name} can neither be read from {root} nor downloaded: {error}; "
            "download it elsewhere and copy it there"
        ) from error
    cache, to_pixels = PixelCache(pixel_bytes), pixel_transform(backbone)

    def decode(place: Place) -> Tensor:
        part, index = place
        return to_pixels(parts[part][index][0])

    read = [_read_once(part, number, cache, to_pixels) for number, part in enumerate(parts)]
    labels = [own for own, _ in read]
    names = getattr(parts[0], "classes", None) or getattr(parts[0], "categories", None)
    # ImageNet's classes have several names each.
    classes = tuple(
        ", ".join(name) if isinstance(name, tuple) else str(name)
        for name in names or range(1 + max(map(max, labels)))
    )
    places = [[(number, index) for index in range(len(own))] for number, own in enumerate(labels)]
    if len(parts) == 1:
        [(_, digests)] = read
        judges = judging(digests, labels[0])
        labels, places = _split(labels[0], judges), _split(places[0], judges)
    train, evaluation = (
        StoredImages(at, own, decode, backbone, cache) for at, own in zip(places, labels, strict=True)
    )
    return DataSet(classes, train, evaluation)


def _parts_of(kind: type) -> list[dict[str, Any]]:
    """How a data set is asked for its training and its test images, or for all it has."""
    given = inspect.signature(kind).parameters
    if "train" in given:
        return [{"train": True}, {"train": False}]
    if "split" in given:
        # Pets have no split "train": what one may train on is "trainval".
        training = given["split"].default if given["split"].default == "trainval" else "train"
        return [{"split": training}, {"split": "test"}]
    return [{}]


def _read_once(
    part: Part, number: int, cache: PixelCache, to_pixels: ToPixels
) -> tuple[list[int], list[bytes]]:
    """The label of every image and a digest of what it shows; images are kept as far as they fit."""
    labels, digests = [], []
    for index in range(len(part)):
        image, label = part[index]
        cache.offer((number, index), to_pixels(image))
        labels.append(int(label))
        digests.append(hashlib.sha256(image.tobytes()).digest())
    return labels, digests


def _split(items: Sequence[Any], judges: Sequence[bool]) -> list[list[Any]]:
    """Those that do not judge, and those that do."""
    return [
        [item for item, judging in zip(items, judges, strict=True) if judging is wanted]
        for wanted in (False, True)
    ]
