"""Tuning a network on a task: a few iterations of gradient descent over all its parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from common.errors import InputError
from common.fitting import on_device_of
from common.task_data import LabelledImages, batches


@dataclass(frozen=True)
class FineTuneSettings:
    """How a sub-network is tuned on a task.

    Stochastic gradient descent with Nesterov momentum; the learning rate falls along a cosine. The
    defaults were chosen on tasks that no table reports.
    """

    iterations: int = 50
    batch_size: int = 32
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    clip_norm: float = 1.0
    """Longest gradient step taken: a cut network's first gradients can be huge, and wreck it."""
    final_rate: float = 0.05
    """Where the cosine ends, as a share of the learning rate; 1 keeps it constant."""
    fit_images: int = 2048
    """Images for batch-norm statistics and the classifier: more is slower, fewer is noisier."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "learning_rate", "clip_norm", "fit_images"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} is {getattr(self, name)}; it must be above 0")
        if self.iterations < 0:
            raise InputError(f"iterations are {self.iterations}; they cannot be negative")


AfterBackward = Callable[[int], None]
"""Called with the iteration's number (from 0), when gradients are there and no step is taken yet."""


def fine_tune(
    network: nn.Module,
    images: LabelledImages,
    settings: FineTuneSettings,
    generator: torch.Generator,
    *,
    after_backward: AfterBackward | None = None,
    after_iteration: Callable[[int], None] | None = None,
) -> float:
    """Tune all parameters in place; the mean loss over the last tenth of the iterations (NaN if none).

    Batch norm normalises by the batch and follows it while tuning. `after_iteration` is called with
    the number of iterations done, and may evaluate: the training mode is restored.
    """
    optimiser = torch.optim.SGD(
        network.parameters(),
        lr=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.momentum > 0,
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimiser,
        max(settings.iterations, 1),
        eta_min=settings.learning_rate * settings.final_rate,
    )
    losses = []
    stream = batches(len(images), settings.batch_size, generator)
    for iteration in range(settings.iterations):
        indices = next(stream)
        with _tuning(network, len(indices)):
            logits = network(on_device_of(network, images.batch(indices)))
            loss = functional.cross_entropy(logits, images.labels[indices].to(logits.device))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
        losses.append(loss.item())
        if after_backward is not None:
            after_backward(iteration)
        nn.utils.clip_grad_norm_(network.parameters(), settings.clip_norm)
        optimiser.step()
        schedule.step()
        if after_iteration is not None:
            after_iteration(iteration + 1)
    network.eval()
    last = losses[-max(1, len(losses) // 10) :]
    return sum(last) / len(last) if last else float("nan")


@contextmanager
def _tuning(network: nn.Module, images: int) -> Iterator[None]:
    network.train(images > 1)
    yield
    network.eval()
