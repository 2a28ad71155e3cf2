"""Small real tasks: telling a few printed characters apart, with a backbone that takes them."""

import torch

from common.backbone import Backbone
from common.images import PixelImages
from common.task_data import Task
from simulations.glyphs import render


def glyph_backbone() -> Backbone:
    return Backbone.from_timm("test_resnet", num_classes=5, image_size=32, arguments={"in_chans": 1})


def glyph_images(characters: str, each: int, backbone: Backbone, seed: int) -> PixelImages:
    pixels, labels = render(characters, each, size=backbone.input_size[1], seed=seed)
    return PixelImages(torch.from_numpy(pixels)[:, None], torch.from_numpy(labels), backbone)


def glyph_task(characters: str, backbone: Backbone, each: int = 24, seed: int = 0) -> Task:
    """The task of these characters: some images each to train on, and others to judge by."""
    train = glyph_images(characters, each, backbone, seed=2 * seed)
    evaluation = glyph_images(characters, 20, backbone, seed=2 * seed + 1)
    return Task(tuple(characters), train, evaluation)
