"""An ImageFolder of noise, quick to draw and to tell apart."""

from pathlib import Path

import numpy as np
from PIL import Image


def draw_images(folder: Path, classes: int = 3, train: int = 8, judging: int = 4) -> Path:
    """An ImageFolder of noise, in each class about a colour of its own."""
    lot = np.random.default_rng(7)
    for name in range(classes):
        colour = lot.integers(0, 200, 3)
        for part, count in (("train", train), ("val", judging)):
            place = folder / part / f"class{name}"
            place.mkdir(parents=True)
            for number in range(count):
                pixels = colour + lot.integers(0, 56, (32, 32, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"{number}.png")
    return folder
