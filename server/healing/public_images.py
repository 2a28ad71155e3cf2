"""Public images: files that the operator may use for anything, and the backbone's features of them."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import TaskDataError
from common.image_folders import SUFFIXES_IN_WORDS, LeftOut, images_below
from server.settings import MOST_IMAGES

if TYPE_CHECKING:
    from common.backbone import Backbone, Weights
    from server.healing.heal import PublicImages, Watch
    from server.healing.store import HealedStore


def image_files(
    directory: Path, most: int = MOST_IMAGES, seed: int = 0, left_out: LeftOut | None = None
) -> list[Path]:
    """Every image file below a directory in any layout, at most `most` of them; see `images_below`.

    The same for the same files and seed, in the order of their names. TaskDataError for less than two.
    """
    directory, left_out = Path(directory), LeftOut() if left_out is None else left_out
    files = sorted(images_below(directory, left_out)) if directory.is_dir() else []
    if len(files) < 2:
        told = left_out.sentence("it")
        raise TaskDataError(
            f"{directory} has {len(files)} image files ({SUFFIXES_IN_WORDS}) below it; healing needs at "
            f"least two, and is better with thousands{told and f' ({told})'}"
        )
    return sorted(random.Random(seed).sample(files, most)) if len(files) > most else files


def images_digest(directory: Path, files: Sequence[Path]) -> str:
    """sha256 over the names below a directory, and the sizes, of these files in it."""
    digest = hashlib.sha256()
    for path in files:
        named = f"{path.relative_to(directory).as_posix()}\0{path.stat().st_size}\0"
        digest.update(named.encode(errors="surrogateescape"))
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
    from common.images import FileImages
    from server.healing.heal import PublicImages

    files = image_files(directory, most, seed)
    images = FileImages(files, [0] * len(files), backbone)
    digest = images_digest(directory, files)
    features = store.features(digest)
    if features is not None and len(features) == len(files):
        return PublicImages(images, features)
    public = PublicImages.of(backbone, weights, images, watch)
    store.put_features(digest, public.features)
    return public
