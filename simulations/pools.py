"""Pools: where the classes of tasks come from, by name."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from common.backbone import Backbone
from common.errors import TaskDataError
from common.torchvision_data import load_torchvision
from simulations.glyphs import SCRIPTS, SEEN, UNSEEN, render
from simulations.tasks import ClassPool, Watch, read_pool

GLYPHS_FOR_TRAINING, GLYPHS_FOR_EVALUATION = 60, 40
"""Images of every glyph."""
GLYPH_POOLS = {"glyphs": UNSEEN, "glyphs:seen": SEEN}
"""Scripts that no backbone of ours was trained on, and those that it was."""


def open_pool(source: str, backbone: Backbone, watch: Watch | None = None) -> ClassPool:
    """The classes of `glyphs` (drawn here), of `torchvision:NAME:DIRECTORY`, or of a directory.

    Raises TaskDataError for a source that is no use.
    """
    if source in GLYPH_POOLS:
        return _glyphs(GLYPH_POOLS[source], backbone)
    if source.startswith("torchvision:"):
        _, name, *root = source.split(":", 2)
        return _by_class(name, Path(root[0] if root else "."), backbone)
    return read_pool(Path(source), backbone, watch)


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
