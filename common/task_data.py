"""A task's data: labelled images, to train on and to judge by, from a folder or a data set by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image, UnidentifiedImageError
from timm.data import create_transform
from torch import Tensor

from common.backbone import Backbone
from common.errors import TaskDataError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})
PIXEL_BYTES = 256 * 2**20
"""Of decoded images that are kept, unless less is asked for: 21,000 of 64 x 64 pixels, 1,700 of 224."""
HELD_OUT_SHARE = 0.2
"""Share of every class that judges, where the data brings no images for that."""


class LabelledImages(Protocol):
    """Images of one task, all of one size, decoded when they are asked for.

    `labels` is int64 (N,), each in [0, K).
    """

    labels: Tensor

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> Tensor:
        """Float32 (B, C, H, W), normalised for the backbone, of the images at int64 (B,)."""


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


class _Normalise:
    """Pixels of 0..255 as the backbone was trained on them."""

    def __init__(self, backbone: Backbone) -> None:
        self._mean = torch.tensor(backbone.mean).view(-1, 1, 1) * 255
        self._std = torch.tensor(backbone.std).view(-1, 1, 1) * 255

    def __call__(self, pixels: Tensor) -> Tensor:
        return (pixels.float() - self._mean) / self._std


class PixelImages:
    """Labelled images held in memory as pixels: uint8 (N, C, H, W)."""

    def __init__(self, pixels: Tensor, labels: Tensor, backbone: Backbone) -> None:
        expected = backbone.input_size
        if pixels.dtype != torch.uint8 or tuple(pixels.shape[1:]) != expected:
            raise TaskDataError(
                f"pixels are {pixels.dtype} {tuple(pixels.shape)}; the backbone takes uint8 "
                f"(N, {', '.join(map(str, expected))})"
            )
        self.pixels = pixels
        self.labels = labels.long()
        self._normalise = _Normalise(backbone)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> Tensor:
        return self._normalise(self.pixels[indices])

    def subset(self, indices: Tensor) -> PixelImages:
        """Some of these images, in the given order."""
        chosen = object.__new__(PixelImages)
        chosen.__dict__.update(self.__dict__)
        chosen.pixels, chosen.labels = self.pixels[indices], self.labels[indices]
        return chosen


class PixelCache:
    """Decoded images by file, up to so many bytes of pixels; what does not fit is decoded each time.

    What is there stays: all images of a task are asked for equally often, in ever other orders, so that
    making room for one would only cost another.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._left = limit_bytes
        self._pixels: dict[Path, Tensor] = {}

    def get(self, path: Path) -> Tensor | None:
        """The pixels of a file, if they are there."""
        return self._pixels.get(path)

    def offer(self, path: Path, pixels: Tensor) -> None:
        """Keep the pixels of a file if they fit."""
        if pixels.nbytes <= self._left:
            self._left -= pixels.nbytes
            self._pixels[path] = pixels


class FileImages:
    """Labelled images in files: read when asked for, and kept as pixels as far as the cache goes."""

    def __init__(
        self,
        paths: Sequence[Path],
        labels: Sequence[int],
        backbone: Backbone,
        cache: PixelCache | None = None,
    ) -> None:
        self.paths = list(paths)
        self.labels = torch.tensor(labels, dtype=torch.int64)
        self._to_pixels = pixel_transform(backbone)
        self._cache = PixelCache(PIXEL_BYTES) if cache is None else cache
        self._normalise = _Normalise(backbone)

    def __len__(self) -> int:
        return len(self.paths)

    def batch(self, indices: Tensor) -> Tensor:
        return self._normalise(torch.stack([self._read(index) for index in indices.tolist()]))

    def _read(self, index: int) -> Tensor:
        path = self.paths[index]
        pixels = self._cache.get(path)
        if pixels is None:
            pixels = read_pixels(path, self._to_pixels)
            self._cache.offer(path, pixels)
        return pixels


def batches(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless batches of indices below `count`, all of one size: no index twice in one pass.

    What a pass leaves over of a whole batch waits for another pass, in another order.
    """
    size = min(size, count)
    while True:
        order = torch.randperm(count, generator=generator)
        for start in range(0, count - size + 1, size):
            yield order[start : start + size]


ToPixels = Callable[[Image.Image], Tensor]
"""What makes an image the backbone's input: uint8 (C, H, W)."""


def pixel_transform(backbone: Backbone) -> ToPixels:
    """Converts to grey or colour, resizes and crops to the centre. TaskDataError for other channels."""
    mode = {1: "L", 3: "RGB"}.get(backbone.input_size[0])
    if mode is None:
        raise TaskDataError(
            f"the backbone takes {backbone.input_size[0]} channels; image files have 1 or 3"
        )
    resize = create_transform(
        input_size=backbone.input_size,
        interpolation=backbone.interpolation,
        crop_pct=1.0,
        normalize=False,
    )
    return lambda image: resize(image.convert(mode))


def read_pixels(path: Path, to_pixels: ToPixels) -> Tensor:
    """The pixels of an image file. TaskDataError naming it where it is no readable image."""
    try:
        with Image.open(path) as image:
            return to_pixels(image)
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise TaskDataError(
            f"{path} cannot be read as an image ({error}); repair or remove the file"
        ) from error


def load_folder(path: Path, backbone: Backbone, pixel_bytes: int = PIXEL_BYTES) -> Task:
    """The task in a directory of `train/CLASS/*.png|jpg` and, optionally, `val/CLASS/...`.

    Classes are the sub-directories of `train`, by name. Without `val`, every fifth image of each
    class (at least one) judges. At most `pixel_bytes` of decoded images are kept in memory; the others
    are read each time that they are asked for. Raises TaskDataError for a directory, class or file that
    is no use.
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
    train: Files = ([], [])
    held: Files = ([], [])
    for label, name in enumerate(classes):
        own = [path for path, its in zip(*files, strict=True) if its == label]
        if len(own) < 2:
            raise TaskDataError(
                f"class {name} has one image ({own[0]}): one trains and one judges, so add another, "
                "or give a val/ directory"
            )
        share = max(1, round(len(own) * HELD_OUT_SHARE))
        step = len(own) / share
        judges = {int(step * k) for k in range(share)}
        for index, path in enumerate(own):
            into = held if index in judges else train
            into[0].append(path)
            into[1].append(label)
    return train, held


def load_torchvision(name: str, root: Path, backbone: Backbone, *, download: bool = True) -> Task:
    """The task in a data set of torchvision, by its class name (`CIFAR100`, `OxfordIIITPet`, ...).

    Its own training and test images are used; of one that has no such parts (`Caltech101`), every fifth
    image of each class judges. Raises TaskDataError for a name that torchvision does not know, or one
    that can be neither found under `root` nor downloaded.
    """
    from torchvision import datasets

    kind = getattr(datasets, name, None)
    if not (isinstance(kind, type) and issubclass(kind, datasets.VisionDataset)):
        raise TaskDataError(f"torchvision has no data set {name!r}; see torchvision.datasets")
    try:
        parts = [kind(str(root), download=download, **chosen) for chosen in _parts_of(kind)]
    except (RuntimeError, OSError, TypeError, ValueError, ImportError) as error:
        raise TaskDataError(
            f"{name} can neither be read from {root} nor downloaded: {error}; "
            "download it elsewhere and copy it there"
        ) from error
    decoded = [_decoded(part, backbone) for part in parts]
    count = 1 + int(torch.cat([part.labels for part in decoded]).max())
    first: Any = parts[0]
    names = getattr(first, "classes", None) or getattr(first, "categories", None) or range(count)
    # ImageNet's classes have several names each.
    classes = tuple(", ".join(name) if isinstance(name, tuple) else str(name) for name in names)
    if len(decoded) == 1:
        judges = _judges(decoded[0].labels)
        decoded = [decoded[0].subset(~judges), decoded[0].subset(judges)]
    return Task(classes, decoded[0], decoded[1])


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


def _judges(labels: Tensor) -> Tensor:
    """Bool (N,): of each class every fifth image, at least one."""
    judges = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        own = torch.nonzero(labels == label).flatten()
        judges[own[:: round(1 / HELD_OUT_SHARE)]] = True
    return judges


def _decoded(part: Sequence[tuple[Image.Image, int]], backbone: Backbone) -> PixelImages:
    to_pixels = pixel_transform(backbone)
    pixels, labels = [], []
    for index in range(len(part)):
        image, label = part[index]
        pixels.append(to_pixels(image))
        labels.append(int(label))
    return PixelImages(torch.stack(pixels), torch.tensor(labels, dtype=torch.int64), backbone)
