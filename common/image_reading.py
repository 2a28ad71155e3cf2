"""Reading images: from a file to an image as networks take it, by Pillow alone.

What trains and what predicts, which has no torch, read alike because both read by this.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from PIL import ExifTags, Image, PngImagePlugin

from common.errors import TaskDataError
from common.system_errors import advice_on, pass_on, system_error

COLOURS = {1: "L", 3: "RGB"}
"""Channels of a network's input -> the mode in which Pillow has them."""
SIXTEEN_BITS = frozenset({"PNG", "PPM"})
"""Formats of which Pillow, or an older one, has pixels of 16 bits in mode I, which is for 32."""
LARGEST_PIXELS = 2 * 89_478_485
"""Beyond these Pillow opens no image; neither is one resized to more."""

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image upright, by its orientation in EXIF: of 1, and what is none, nothing does."""

PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 64 * 2**20
# Pillow unpacks at most 1 MiB of each text and colour profile of a PNG, and keeps at most 64 MiB of text
# in all. Programs write more than 1 MiB, as in XMP with a history of edits, so one text may be as long as
# all together. What unpacks to more is still refused, long before it takes as much memory as pixels may.

Pixels = TypeVar("Pixels")


def read_image(path: Path, to_pixels: Callable[[Image.Image], Pixels]) -> Pixels:
    """What `to_pixels` makes of an image file. TaskDataError naming it where it is no readable image."""
    try:
        with warnings.catch_warnings():
            # Pillow warns from half the size on that it refuses.
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                return to_pixels(image)
    except Exception as error:  # of any kind: the decoders are not ours
        system = system_error(error) or error
        if isinstance(system, OSError) and system.errno is not None:  # Pillow's own have no number
            raise TaskDataError(
                f"{path} cannot be read ({system.strerror}); {advice_on(system)}"
            ) from error
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise TaskDataError(
            f"{path} cannot be read as an image ({said}); repair or remove the file"
        ) from error


def prepared(image: Image.Image, channels: int) -> Image.Image:
    """An image upright as its EXIF says, with 8 bits, in grey (1 channel) or in colour (3).

    TaskDataError for pixels of 32 bits.
    """
    orientation = _orientation(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in SIXTEEN_BITS):
        # Pillow would clip what is above 255.
        image = image.convert("I").point(lambda value: value / 256)
    elif image.mode in ("I", "F"):
        raise TaskDataError(
            "its pixels are numbers of 32 bits, which do not say what is black and what is white; save "
            "it with 8 or 16 bits"
        )
    mode = COLOURS[channels]
    image = image if image.mode == mode else image.convert(mode)
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def _orientation(image: Image.Image) -> object:
    # A PNG's EXIF may stand behind its pixels; those, if they are broken, are told of here.
    image.load()
    try:
        # ImageOps.exif_transpose also writes the rest anew, fails where a camera wrote that oddly, and
        # copies images that are upright.
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception as error:  # of any kind: who wrote it is unknown, and there are pixels without it
        pass_on(error)
        return None


def filling(image: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Width and height of an image, given as such, once resized until it just fills (H, W).

    TaskDataError where that is more than LARGEST_PIXELS, as of a line.
    """
    width, height = image
    high, wide = size
    if high == wide:
        # torchvision rounds the longer side down, timm, for other shapes, to the nearest.
        short = min(width, height)
        new = (wide, int(wide * height / short)) if width <= height else (int(wide * width / short), wide)
    else:
        ratio = min(height / high, width / wide)
        new = (round(width / ratio), round(height / ratio))
    if new[0] * new[1] > LARGEST_PIXELS:
        raise TaskDataError(
            f"{width:,} x {height:,} pixels would be resized to {new[0]:,} x {new[1]:,}, "
            f"more than {LARGEST_PIXELS:,}: crop it"
        )
    return new
