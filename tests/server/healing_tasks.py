"""Something to heal: a small backbone that knows its images, and masks of it."""

from collections.abc import Iterator

import numpy as np
import torch
from glyph_tasks import glyph_images
from random_weights import random_weights

from common.backbone import Backbone, Weights
from common.fitting import recalibrate_batch_norm
from common.mask import Mask
from common.rebuild import rebuild
from common.structure import Structure
from server.healing.heal import PublicImages
from server.healing.store import HealedBackbone

IN_ITS_RANGE = 0.3


def glyph_backbone(model: str = "test_resnet") -> Backbone:
    return Backbone.from_timm(model, num_classes=5, image_size=32, arguments={"in_chans": 1})


def settled_weights(backbone: Backbone) -> Weights:
    """Random ones, with the batch norms' statistics of glyphs: else its features tell nothing."""
    network = rebuild(backbone, random_weights(backbone))
    images = glyph_images("abcde", 8, backbone, seed=7)
    recalibrate_batch_norm(network, images, torch.Generator().manual_seed(0), len(images))
    return {name: tensor.detach() for name, tensor in network.state_dict().items()}


def public_glyphs(backbone: Backbone, weights: Weights, each: int = 8) -> PublicImages:
    return PublicImages.of(backbone, weights, glyph_images("abcdefgh", each, backbone, seed=1))


def mask_of(structure: Structure, seed: int = 0, keep: float = IN_ITS_RANGE) -> Mask:
    lot = np.random.default_rng(seed)
    counts = [max(1, round(keep * units)) for units in structure.sizes]
    return Mask.keep_top(structure, {g.name: lot.random(g.units) for g in structure.groups}, counts)


def masks_of(structure: Structure) -> Iterator[Mask]:
    return (mask_of(structure, seed) for seed in range(10**6))


def healed_backbone(weights: Weights, backbone: Backbone, offset: float = 0.5) -> HealedBackbone:
    """Of weights that are known from others: by so much larger."""
    changed = {
        name: tensor + offset if tensor.is_floating_point() else tensor
        for name, tensor in weights.items()
        if name not in backbone.classifier_tensors
    }
    return HealedBackbone(changed, 0.2, 0.4, 10_000.0, iterations=10, images=64, entries=3, seconds=1.5)
