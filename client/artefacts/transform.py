"""Transform: an image file's pixels as a network takes them, by numpy and Pillow alone.

Bit for bit what `common.images.pixel_transform` and the normalisation there give: torchvision resizes
Pillow's images with Pillow too, so that only its sizes and offsets have to be the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common.errors import InputError
from common.image_reading import COLOURS, filling, prepared, read_image

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
    "lanczos": Image.Resampling.LANCZOS,
}
"""By the names that timm has for them."""


@dataclass(frozen=True)
class Transform:
    """What makes an image a network's input: upright, grey or colour, resized, cropped, normalised.

    `size` is (H, W): the image is resized until it is filled, and cropped to the centre. `mean` and
    `std` (C,) normalise pixels in [0, 1]. InputError for channels, sizes or names that none has.
    """

    size: tuple[int, int]
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        problems = []
        if len(self.size) != 2 or not all(type(side) is int and 0 < side < 2**15 for side in self.size):
            problems.append(f"images are {self.size}, not (height, width)")
        if self.interpolation not in INTERPOLATIONS:
            problems.append(f"{self.interpolation!r} is none of {', '.join(INTERPOLATIONS)}")
        if len(self.mean) not in COLOURS or len(self.std) != len(self.mean):
            problems.append(f"{len(self.mean)} means and {len(self.std)} deviations; images have 1 or 3")
        elif not all(math.isfinite(value) for value in (*self.mean, *self.std)) or min(self.std) <= 0:
            problems.append(f"mean {self.mean} and std {self.std} do not normalise")
        if problems:
            raise InputError(f"images cannot be prepared: {'; '.join(problems)}")

    @classmethod
    def of_backbone(cls, description: Mapping[str, Any]) -> Transform:
        """The transform of a backbone's description. InputError where it describes none."""
        try:
            channels, height, width = description["input_size"]
            mean, std = (tuple(map(float, description[word])) for word in ("mean", "std"))
            interpolation = description["interpolation"]
        except (LookupError, TypeError, ValueError) as error:
            raise InputError(
                f"the backbone's description lacks how images are prepared: {error}"
            ) from error
        if channels != len(mean):
            raise InputError(f"images have {channels} channels and {len(mean)} means")
        return cls((height, width), interpolation, mean, std)

    @property
    def channels(self) -> int:
        """Channels of the input: 1 or 3."""
        return len(self.mean)

    def pixels(self, image: Image.Image) -> np.ndarray:
        """The pixels of an image, uint8 (C, H, W). TaskDataError for one that becomes too large."""
        image = prepared(image, self.channels)
        new = filling(image.size, self.size)
        if new != image.size:
            image = image.resize(new, INTERPOLATIONS[self.interpolation])
        cropped = _cropped(image, self.size)
        array = np.asarray(cropped, dtype=np.uint8).reshape(*self.size, self.channels)
        return np.ascontiguousarray(array.transpose(2, 0, 1))

    def normalised(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels uint8 (N, C, H, W) as the network takes them: float32, normalised."""
        mean, std = (
            np.array(values, dtype=np.float32).reshape(-1, 1, 1) * 255 for values in (self.mean, self.std)
        )
        return (pixels.astype(np.float32) - mean) / std

    def read(self, path: Path) -> np.ndarray:
        """The pixels of an image file. TaskDataError naming it where it is no readable image."""
        return read_image(path, self.pixels)


def _cropped(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The centre of an image that is at least of this size."""
    width, height = image.size
    high, wide = size
    top, left = round((height - high) / 2.0), round((width - wide) / 2.0)
    return image.crop((left, top, left + wide, top + high))
