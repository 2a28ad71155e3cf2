"""Pools: where the classes of tasks, and public images, come from, by name."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
import torch

from common.backbone import Backbone
from common.errors import TaskDataError
from common.image_folders import LeftOut
from common.images import PIXEL_BYTES, FileImages, LabelledImages, PixelCache
from common.task_folder import TaskFolder
from common.torchvision_data import load_torchvision
from server.healing.public_images import image_files, images_digest
from simulations.glyphs import SCRIPTS, SEEN, UNSEEN, render
from simulations.sources import GLYPHS, SEEN_GLYPHS
from simulations.tasks import ClassPool, Watch, pool_folder, read_pool

GLYPHS_FOR_TRAINING, GLYPHS_FOR_EVALUATION = 60, 40
"""Images of every glyph."""
GLYPH_POOLS = {GLYPHS: UNSEEN, SEEN_GLYPHS: SEEN}
"""Scripts that no backbone of ours was trained on, and those that it was."""


def open_pool(source: str, backbone: Backbone, watch: Watch | None = None) -> ClassPool:
    """The classes of `glyphs` (drawn here), of `torchvision:NAME:DIRECTORY`, or of a directory.

    Raises TaskDataError for a source that is no use.
    """
    if source in GLYPH_POOLS:
        return _glyphs(GLYPH_POOLS[source], backbone)
    if not _is_directory(source):
        _, name, *root = source.split(":", 2)
        return _by_class(name, Path(root[0] if root else "."), backbone)
    return read_pool(Path(source), backbone, watch)


def source_folder(source: str) -> TaskFolder | None:
    """The images of a source of classes that is a directory, none of them opened; None for another.

    Raises TaskDataError for a directory that is no use.
    """
    return pool_folder(Path(source)) if _is_directory(source) else None


def check_two_sides(folder: TaskFolder, source: str | Path) -> None:
    """Raise TaskDataError unless library and devices can have training images of each class."""
    single = [name for name, files in folder.train.items() if len(files) < 2]
    if single:
        raise TaskDataError(
            f"{source}/train has a single image of {', '.join(single)}; the library and the devices need "
            "one each: add images, or remove the class"
        )


def public_files(
    source: str, most: int = sys.maxsize, left_out: LeftOut | None = None
) -> list[Path] | None:
    """The public images in a source that is a directory, at most `most` of them; None for another source.

    A directory may have any layout, as for `maskvote-server heal`; of one with `train` and `val`, which
    is to judge, the images of `train` are taken. Raises TaskDataError for less than two images.
    """
    return image_files(_public_directory(source), most, 0, left_out) if _is_directory(source) else None


def open_public(
    source: str, backbone: Backbone, most: int, pixel_bytes: int = PIXEL_BYTES
) -> tuple[LabelledImages, str]:
    """At most `most` public images of a directory in any layout, or of a pool, and their digest.

    Of a pool these are training images, of all classes alike. At most `pixel_bytes` of decoded images of
    a directory are kept. Errors as of `public_files` and `open_pool`.
    """
    files = public_files(source, most)
    if files is None:
        pool = open_pool(source, backbone)
        images = pool.task(pool.all_classes, images=max(2, most // len(pool.names))).train
        return images, hashlib.sha256(f"{source}\0{len(images)}".encode()).hexdigest()
    digest = images_digest(_public_directory(source), files)
    return FileImages(files, [0] * len(files), backbone, PixelCache(pixel_bytes)), digest


def _public_directory(source: str) -> Path:
    path = Path(source)
    return path / "train" if (path / "train").is_dir() and (path / "val").is_dir() else path


def _is_directory(source: str) -> bool:
    return source not in GLYPH_POOLS and not source.startswith("torchvision:")


def _glyphs(scripts: tuple[str, ...], backbone: Backbone) -> ClassPool:
    channels, height, width = backbone.input_size
    if height != width:
        raise TaskDataError(f"glyphs are square, the backbone takes {height} x {width}; choose another")
    names = [character for script in scripts for character in SCRIPTS[script]]
    each = GLYPHS_FOR_TRAINING + GLYPHS_FOR_EVALUATION
    pixels, labels = render(names, each, size=height, seed=len(scripts))
    per_class = [
        torch.from_numpy(np.ascontiguousarray(pixels[labels == k]))[:, None].expand(-1, channels, -1, -1)
        for k in range(len(names))
    ]
    return ClassPool(
        tuple(names),
        tuple(images[:GLYPHS_FOR_TRAINING] for images in per_class),
        tuple(images[GLYPHS_FOR_TRAINING:] for images in per_class),
        backbone,
    )


def _by_class(name: str, root: Path, backbone: Backbone) -> ClassPool:
    """A data set of torchvision, its images by class. Its test images judge."""
    found = load_torchvision(name, root, backbone, pixel_bytes=sys.maxsize)
    train, evaluation = (
        tuple(images.read(torch.nonzero(images.labels == k).flatten()) for k in range(len(found.classes)))
        for images in (found.train, found.evaluation)
    )
    return ClassPool(found.classes, train, evaluation, backbone)
