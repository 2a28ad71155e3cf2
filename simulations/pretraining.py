"""Pre-training a backbone where none can be downloaded: a plain recipe for small networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import timm
import torch
from torch import Tensor
from torch.nn import functional

from common.backbone import Backbone
from common.fitting import on_device_of
from common.task_data import LabelledImages, batches


@dataclass(frozen=True)
class PretrainingSettings:
    """Stochastic gradient descent with Nesterov momentum on a one-cycle schedule."""

    iterations: int = 1200
    batch_size: int = 64
    learning_rate: float = 0.2
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    seed: int = 0


def pretrain(
    backbone: Backbone,
    images: LabelledImages,
    settings: PretrainingSettings,
    watch: Callable[[int, int], None] | None = None,
) -> dict[str, Tensor]:
    """The weights of the backbone after training it on these images; the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = timm.create_model(
            backbone.model, num_classes=backbone.num_classes, **backbone.arguments
        )
    network = network.to(memory_format=torch.channels_last).train()
    optimiser = torch.optim.SGD(
        network.parameters(),
        lr=settings.learning_rate,
        momentum=0.9,
        nesterov=True,
        weight_decay=settings.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser,
        settings.learning_rate,
        total_steps=settings.iterations,
        pct_start=0.2,
        cycle_momentum=False,
    )
    stream = batches(len(images), settings.batch_size, torch.Generator().manual_seed(settings.seed))
    for iteration in range(settings.iterations):
        indices = next(stream)
        logits = network(on_device_of(network, images.batch(indices)))
        loss = functional.cross_entropy(
            logits, images.labels[indices], label_smoothing=settings.label_smoothing
        )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        if watch is not None:
            watch(iteration + 1, settings.iterations)
    return {name: tensor.detach().contiguous() for name, tensor in network.eval().state_dict().items()}
