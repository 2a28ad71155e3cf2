"""Devices of a simulation: each has a directory with its own images, as a real device would."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from torch import Tensor

from simulations.tasks import ClassPool, TaskChoice


def lay_out(
    path: Path, pool: ClassPool, choice: TaskChoice, *, owners: int = 1, owner: int = 0, images: int
) -> Path:
    """Write a task into `path` as `train/CLASS/*.png` and `val/CLASS/*.png`; the path.

    At most `images` training images a class, none of another owner's; all evaluation images.
    """
    for number, k in enumerate(choice.classes):
        name = f"{number:02d}-{_file_name(pool.names[k])}"
        _write(path / "train" / name, pool.train[k][owner::owners][:images])
        _write(path / "val" / name, pool.evaluation[k])
    return path


def _file_name(name: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_") else f"u{ord(c):04x}" for c in name)


def _write(folder: Path, pixels: Tensor) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(pixels.numpy()):
        picture = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
        picture.save(folder / f"{number:04d}.png", compress_level=1)
