"""Weights of a backbone that nobody has trained."""

import timm
import torch

from common.backbone import Backbone, Weights


def random_weights(backbone: Backbone, seed: int = 0) -> Weights:
    """What timm starts from by this seed, on any worker and after any other test."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = timm.create_model(
            backbone.model, num_classes=backbone.num_classes, **backbone.arguments
        )
    return dict(network.state_dict())
