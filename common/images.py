"""Images of a task: labelled, held as pixels, or stored elsewhere and read as they are needed."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor

from common.backbone import Backbone
from common.errors import TaskDataError
from common.image_reading import COLOURS, filling, prepared, read_image
from common.memory_limit import PIXEL_BYTES


class LabelledImages(Protocol):
    """Images of one task, all of one size, decoded when they are asked for.

    `labels` is int64 (N,), each in [0, K).
    """

    labels: Tensor

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> Tensor:
        """Float32 (B, C, H, W), normalised for the backbone, of the images at int64 (B,)."""


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


class PixelCache:
    """Decoded images by their places, up to so many bytes; what does not fit is decoded each time.

    What is there stays: all images of a task are asked for equally often, in ever other orders, so that
    making room for one would only cost another.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._left = limit_bytes
        self._pixels: dict[Hashable, Tensor] = {}

    def get(self, place: Hashable) -> Tensor | None:
        """The pixels of an image, if they are there."""
        return self._pixels.get(place)

    def offer(self, place: Hashable, pixels: Tensor) -> None:
        """Keep the pixels of an image if they fit."""
        if pixels.nbytes <= self._left:
            self._left -= pixels.nbytes
            self._pixels[place] = pixels


class StoredImages:
    """Labelled images that are read when asked for, and kept as pixels as far as the cache goes.

    `decode` gives the pixels, uint8 (C, H, W), of one of the `places`, of which each has its label.
    """

    def __init__(
        self,
        places: Sequence[Any],
        labels: Sequence[int],
        decode: Callable[[Any], Tensor],
        backbone: Backbone,
        cache: PixelCache | None = None,
    ) -> None:
        self.labels = torch.tensor(labels, dtype=torch.int64)
        self._places = list(places)
        self._decode = decode
        self._cache = PixelCache(PIXEL_BYTES) if cache is None else cache
        self._normalise = _Normalise(backbone)

    def __len__(self) -> int:
        return len(self._places)

    def batch(self, indices: Tensor) -> Tensor:
        return self._normalise(self.read(indices))

    def read(self, indices: Tensor) -> Tensor:
        """The pixels of the images at int64 (B,): uint8 (B, C, H, W)."""
        return torch.stack([self._read(index) for index in indices.tolist()])

    def _read(self, index: int) -> Tensor:
        place = self._places[index]
        pixels = self._cache.get(place)
        if pixels is None:
            pixels = self._decode(place)
            self._cache.offer(place, pixels)
        return pixels


class FileImages(StoredImages):
    """Labelled images in files. TaskDataError naming a file that is none, when it is read."""

    def __init__(
        self,
        paths: Sequence[Path],
        labels: Sequence[int],
        backbone: Backbone,
        cache: PixelCache | None = None,
    ) -> None:
        decode = partial(read_image, to_pixels=pixel_transform(backbone))
        super().__init__(paths, labels, decode, backbone, cache)


class SomeImages:
    """Those of other labelled images that `indices`, int64 (N,), names, in this order."""

    def __init__(self, images: LabelledImages, indices: Tensor) -> None:
        self.labels = images.labels[indices]
        self._images = images
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def batch(self, indices: Tensor) -> Tensor:
        return self._images.batch(self._indices[indices])


def batches(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless batches of indices below `count`, all of one size: no index twice in one pass.

    What a pass leaves over of a whole batch waits for another pass, in another order.
    """
    size = min(size, count)
    while True:
        order = torch.randperm(count, generator=generator)
        for start in range(0, count - size + 1, size):
            yield order[start : start + size]


def in_turn(labels: Tensor, order: Tensor) -> Tensor:
    """The images of an order, int64 (N,), anew: one of every class in turn, while it has any.

    Within a class the order stays. The first of them are of all classes alike, however rare one is.
    """
    own = labels[order]
    by_class = own.argsort(stable=True)
    counts = own.bincount()
    firsts = counts.cumsum(0) - counts
    turns = torch.empty_like(order)
    turns[by_class] = torch.arange(len(order)) - firsts[own[by_class]]
    return order[turns.argsort(stable=True)]


ToPixels = Callable[[Image.Image], Tensor]
"""What makes an image the backbone's input: uint8 (C, H, W)."""


def pixel_transform(backbone: Backbone) -> ToPixels:
    """Turns upright, converts to grey or colour, resizes and crops to the centre.

    TaskDataError for other channels than these have; what it gives raises it for an image that becomes
    too large: see `filling`.
    """
    channels, *size = backbone.input_size
    if channels not in COLOURS:
        raise TaskDataError(f"the backbone takes {channels} channels; image files have 1 or 3")
    resize = create_transform(
        input_size=backbone.input_size,
        interpolation=backbone.interpolation,
        crop_pct=1.0,
        normalize=False,
    )

    def to_pixels(image: Image.Image) -> Tensor:
        image = prepared(image, channels)
        filling(image.size, (size[0], size[1]))
        return resize(image)

    return to_pixels
