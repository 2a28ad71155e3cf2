"""Public images: files that the operator may use for anything, and the backbone's features of them."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path

from common.backbone import Backbone, Weights
from common.errors import TaskDataError
from common.image_reading import IMAGE_SUFFIXES
from common.images import FileImages
from server.healing.heal import PublicImages, Watch
from server.healing.store import HealedStore

MOST_IMAGES = 10_000
"""How many images are used unless asked otherwise. Pixels are held in memory up to
`common.images.PIXEL_BYTES`; images beyond that are decoded each time that they are used."""


def image_files(directory: Path, most: int = MOST_IMAGES, seed: int = 0) -> list[Path]:
    """Every image file (`*.png`, `*.jpg`, ...) below a directory in any layout, at most so many of them.

    The same for the same files and seed, in the order of their names. TaskDataError for less than two.
    """
    files = sorted(
        path
        for path in Path(directory).rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
    )
    if len(files) < 2:
        raise TaskDataError(
            f"{directory} has {len(files)} image files (*.png, *.jpg) below it; healing needs at least "
            "two, and is better with thousands"
        )
    return sorted(random.Random(seed).sample(files, most)) if len(files) > most else files


def images_digest(directory: Path, files: Sequence[Path]) -> str:
    """sha256 over the names below a directory, and the sizes, of these files in it."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(directory).as_posix()}\0{path.stat().st_size}\0".encode())
    return digest.hexdigest()


def public_images(
    directory: Path,
    backbone: Backbone,
    weights: Weights,
    store: HealedStore,
    *,
    most: int = MOST_IMAGES,
    seed: int = 0,
    watch: Watch | None = None,
) -> PublicImages:
    """The images below a directory, with their features: from the store, else computed and kept there.

    `weights` are the whole backbone's, on the device that is to compute. Errors as of `image_files`,
    and TaskDataError naming a file that is no readable image.
    """
    files = image_files(directory, most, seed)
    images = FileImages(files, [0] * len(files), backbone)
    digest = images_digest(directory, files)
    features = store.features(digest)
    if features is not None and len(features) == len(files):
        return PublicImages(images, features)
    public = PublicImages.of(backbone, weights, images, watch)
    store.put_features(digest, public.features)
    return public
