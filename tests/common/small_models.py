"""timm's families, each at its smallest: name, image size, and what makes it small."""

from functools import cache
from typing import Any

from common.backbone import Backbone

_VIT = {"embed_dim": 24, "depth": 2, "num_heads": 3}

SMALL: dict[str, tuple[int, dict[str, Any]]] = {
    "swin_tiny_patch4_window7_224": (
        32, {"embed_dim": 12, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4}),
    "beit_base_patch16_224": (32, _VIT),
    "pvt_v2_b0": (64, {"depths": [1, 1, 1, 1], "embed_dims": [8, 16, 24, 32], "num_heads": [1, 2, 3, 4]}),
    "twins_svt_small": (
        64, {"embed_dims": [16, 16, 32, 32], "depths": [2, 1, 1, 1], "num_heads": [2, 2, 4, 4]}),
    "xcit_nano_12_p16_224": (32, _VIT),
    "cait_xxs24_224": (32, _VIT),
    "convit_tiny": (32, {**_VIT, "local_up_to_layer": 1}),
    "eva02_tiny_patch14_224": (28, _VIT),
    "levit_128s": (
        64, {"embed_dim": [16, 24, 32], "num_heads": [2, 3, 4], "depth": [1, 1, 1], "key_dim": 8}),
    "coat_lite_tiny": (64, {"embed_dims": [16, 16, 32, 32], "serial_depths": [1, 1, 1, 1]}),
    "convnextv2_atto": (32, {"depths": [1, 1, 1, 1], "dims": [8, 16, 16, 24]}),
    "mambaout_femto": (64, {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}),
    "inception_next_atto": (64, {"depths": [1, 1, 1, 1], "dims": [16, 16, 32, 32]}),
    "deit_tiny_distilled_patch16_224": (32, _VIT),
    "tiny_vit_5m_224": (
        64, {"depths": [1, 1, 1, 1], "embed_dims": [16, 32, 32, 64], "num_heads": [1, 2, 2, 4],
             "window_sizes": [2, 2, 2, 2]}),
    "fasternet_t0": (64, {"embed_dim": 16, "depths": [1, 1, 1, 1]}),
    "res2net50_26w_4s": (64, {"layers": [1, 2, 1, 1]}),
}  # fmt: skip


@cache
def small(model: str) -> Backbone:
    """The family's small backbone."""
    image_size, arguments = SMALL[model]
    return Backbone.from_timm(model, num_classes=4, image_size=image_size, arguments=arguments)
