"""The demo: a backbone pre-trained on glyphs of many scripts serves devices that bring unseen ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

from common.backbone import Backbone
from common.files import write_whole
from common.images import PixelImages
from simulations.glyphs import SCRIPTS, SEEN, UNSEEN, digits, render
from simulations.pretraining import PretrainingSettings, pretrain
from simulations.tasks import ClassPool, TaskChoice


@dataclass(frozen=True)
class DemoSettings:
    """A backbone small enough to pre-train while one waits, and tasks of ten classes."""

    model: str = "resnet10t"
    channels: tuple[int, ...] = (32, 64, 128, 256)
    image_size: int = 32
    glyphs_per_class: int = 80
    pretraining: PretrainingSettings = field(default_factory=PretrainingSettings)
    library_tasks: int = 12
    ways: int = 10
    train_images: int = 30
    evaluation_images: int = 40
    seed: int = 0


def demo_backbone(settings: DemoSettings) -> Backbone:
    """The backbone of the demo, for all glyphs of the seen scripts."""
    return Backbone.from_timm(
        settings.model,
        num_classes=sum(len(SCRIPTS[name]) for name in SEEN),
        image_size=settings.image_size,
        arguments={
            "in_chans": 1,
            "channels": list(settings.channels),
            # One plain convolution: the narrow ones of a deep stem would lose all but one unit.
            "stem_type": "",
        },
    )


def demo_weights(
    backbone: Backbone,
    settings: DemoSettings,
    cache: Path,
    watch: Callable[[int, int], None],
) -> Path:
    """The file of the backbone's weights in `cache`: pre-trained now, unless it is there already."""
    made_of = json.dumps([asdict(settings.pretraining), settings.glyphs_per_class, settings.seed])
    digest = hashlib.sha256((backbone.to_json() + made_of).encode()).hexdigest()[:12]
    path = cache / f"glyph-backbone-{digest}.safetensors"
    if not path.exists():
        seen = [character for name in SEEN for character in SCRIPTS[name]]
        pixels, labels = render(
            seen, settings.glyphs_per_class, size=settings.image_size, seed=settings.seed
        )
        images = PixelImages(_as_pixels(pixels), torch.from_numpy(labels), backbone)
        cache.mkdir(parents=True, exist_ok=True)
        write_whole(path, save(pretrain(backbone, images, settings.pretraining, watch)))
    return path


def library_pool(backbone: Backbone, settings: DemoSettings) -> ClassPool:
    """The seen scripts, in images that pre-training did not see."""
    names = [character for name in SEEN for character in SCRIPTS[name]]
    return _glyph_pool(backbone, names, settings, seed=settings.seed + 1)


def device_tasks(backbone: Backbone, settings: DemoSettings) -> list[tuple[ClassPool, TaskChoice]]:
    """One task for each unseen script, in the order of their names, and one of handwritten digits."""
    lot = np.random.default_rng(settings.seed + 2)
    tasks = []
    for script in UNSEEN:
        characters = SCRIPTS[script]
        chosen = sorted(lot.choice(len(characters), settings.ways, replace=False).tolist())
        pool = _glyph_pool(backbone, [characters[k] for k in chosen], settings, settings.seed + 3)
        tasks.append((pool, TaskChoice(script.replace("_", "-"), tuple(range(settings.ways)))))
    tasks.append((_digit_pool(backbone, settings), TaskChoice("digits", tuple(range(10)))))
    return tasks


def _glyph_pool(
    backbone: Backbone, characters: list[str], settings: DemoSettings, seed: int
) -> ClassPool:
    count = settings.train_images + settings.evaluation_images
    pixels, labels = render(characters, count, size=settings.image_size, seed=seed)
    return _pool(backbone, characters, pixels, labels, settings.train_images)


def _digit_pool(backbone: Backbone, settings: DemoSettings) -> ClassPool:
    pixels, labels = digits(size=settings.image_size)
    return _pool(backbone, [str(k) for k in range(10)], pixels, labels, settings.train_images)


def _pool(
    backbone: Backbone, names: list[str], pixels: np.ndarray, labels: np.ndarray, train: int
) -> ClassPool:
    per_class = [_as_pixels(pixels[labels == k]) for k in range(len(names))]
    return ClassPool(
        tuple(names),
        tuple(images[:train] for images in per_class),
        tuple(images[train:] for images in per_class),
        backbone,
    )


def _as_pixels(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images)[:, None]
