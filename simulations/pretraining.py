"""Pre-training a backbone where none can be downloaded: plain recipes for small networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import timm
import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.nn import functional

from common.backbone import Backbone, features
from common.errors import InputError
from common.fitting import on_device_of
from common.images import LabelledImages, batches
from server.healing.heal import PublicImages

DISTILLATION = 2.0
"""Weight of the distance to a teacher's features, beside that of the labels' cross-entropy."""


@dataclass(frozen=True)
class PretrainingSettings:
    """A one-cycle schedule of SGD with Nesterov momentum, or of AdamW, which transformers need.

    `flips` and `shift`, in pixels, are how images are varied; neither suits drawn characters.
    """

    iterations: int = 1200
    batch_size: int = 64
    learning_rate: float = 0.2
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    seed: int = 0
    optimiser: Literal["sgd", "adamw"] = "sgd"
    flips: bool = False
    shift: int = 0
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.batch_size < 2 or not self.learning_rate > 0 or self.shift < 0:
            raise InputError(
                f"pre-training in {self.iterations} iterations of {self.batch_size} images at a "
                f"learning rate of {self.learning_rate}, shifted by {self.shift} pixels; needed are at "
                "least 1, at least 2, more than 0, and at least 0"
            )


def pretrain(
    backbone: Backbone,
    images: LabelledImages,
    settings: PretrainingSettings,
    watch: Callable[[int, int], None] | None = None,
    teacher: PublicImages | None = None,
    device: str = "cpu",
) -> dict[str, Tensor]:
    """The weights of the backbone after training it on these images; the same for the same seed.

    A `teacher` is another backbone's features of the same images, (N, D): the network's own are to tell
    them by a linear map, each feature as many times its spread away. A network that learns from few
    images learns much faster so, above all a transformer.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = timm.create_model(
            backbone.model, num_classes=backbone.num_classes, **backbone.arguments
        )
        classifier: Any = network.get_submodule(backbone.classifier)
        width = 0 if teacher is None else teacher.features.shape[1]
        to_teacher = nn.Linear(classifier.in_features, width) if width else nn.Identity()
    network = network.to(memory_format=torch.channels_last).to(device).train()
    learner = nn.ModuleList([network, to_teacher.to(device)])
    optimiser = create_optimizer_v2(
        learner,
        opt=settings.optimiser,
        lr=settings.learning_rate,
        momentum=0.9,
        weight_decay=settings.weight_decay,
        filter_bias_and_bn=settings.optimiser == "adamw",
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser,
        settings.learning_rate,
        total_steps=settings.iterations,
        pct_start=0.2,
        cycle_momentum=False,
    )
    stream = _varied_batches(images, settings)
    goals = _goals(teacher)
    for iteration in range(settings.iterations):
        indices, pixels = next(stream)
        found = features(network, on_device_of(network, pixels))
        loss = functional.cross_entropy(
            classifier(found),
            images.labels[indices].to(found.device),
            label_smoothing=settings.label_smoothing,
        )
        if goals is not None:
            goal = goals(indices).to(found.device)
            loss = loss + DISTILLATION * functional.mse_loss(to_teacher(found), goal)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if settings.clip_norm is not None:
            nn.utils.clip_grad_norm_(learner.parameters(), settings.clip_norm)
        optimiser.step()
        schedule.step()
        if watch is not None:
            watch(iteration + 1, settings.iterations)
    return {
        name: tensor.detach().cpu().contiguous() for name, tensor in network.eval().state_dict().items()
    }


def _goals(teacher: PublicImages | None) -> Callable[[Tensor], Tensor] | None:
    """The teacher's features of some images, in spreads from their mean."""
    if teacher is None:
        return None
    center = teacher.features.float().mean(dim=0)
    return lambda indices: (teacher.features[indices].float() - center) / teacher.spread


def _varied_batches(
    images: LabelledImages, settings: PretrainingSettings
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless indices (B,) and images (B, C, H, W) at them: half of them flipped, all of them shifted."""
    generator = torch.Generator().manual_seed(settings.seed)
    variation = torch.Generator().manual_seed(settings.seed + 1)
    for indices in batches(len(images), settings.batch_size, generator):
        pixels = images.batch(indices)
        if settings.flips:
            flipped = torch.rand(len(pixels), generator=variation) < 0.5
            pixels[flipped] = pixels[flipped].flip(-1)
        if settings.shift:
            height, width = pixels.shape[-2:]
            padded = functional.pad(pixels, [settings.shift] * 4, mode="reflect")
            offsets = torch.randint(2 * settings.shift + 1, (len(pixels), 2), generator=variation)
            pixels = torch.stack(
                [
                    image[:, top : top + height, left : left + width]
                    for image, (top, left) in zip(padded, offsets.tolist(), strict=True)
                ]
            )
        yield indices, pixels
