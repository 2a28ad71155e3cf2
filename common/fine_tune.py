"""Fitting a network to a task: batch-norm statistics, a classifier from class means, a few iterations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.backbone import features
from common.errors import InputError
from common.task_data import LabelledImages

EVALUATION_BATCH = 128


@dataclass(frozen=True)
class FineTuneSettings:
    """How a sub-network is tuned on a task.

    Stochastic gradient descent with Nesterov momentum; the learning rate falls along a cosine. The
    defaults were chosen on tasks that no table reports.
    """

    iterations: int = 50
    batch_size: int = 32
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    calibration_images: int = 512
    """Images for batch-norm statistics: more is slower, fewer is noisier."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "learning_rate", "calibration_images"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} is {getattr(self, name)}; it must be above 0")
        if self.iterations < 0:
            raise InputError(f"iterations are {self.iterations}; they cannot be negative")


def batches(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless batches of indices below `count`: every index once before any comes again.

    A batch is never of one image alone where there are two: batch norm could not do with it.
    """
    size = min(size, count)
    while True:
        order = torch.randperm(count, generator=generator)
        for start in range(0, count - size + 1, size):
            yield order[start : start + size]


def recalibrate_batch_norm(
    network: nn.Module, images: LabelledImages, generator: torch.Generator, count: int
) -> None:
    """Set every batch norm's statistics to those of this task's images in this network.

    Cutting changes what reaches a layer; statistics of the whole backbone no longer fit it.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    norms = [norm for norm in norms if norm.track_running_stats]
    if not norms or len(images) < 2:
        return
    momenta = [norm.momentum for norm in norms]
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches
        norm.train()
    chosen = torch.randperm(len(images), generator=generator)[:count]
    with torch.no_grad():
        for indices in chosen.split(64):
            if len(indices) > 1:
                network(_input(network, images.batch(indices)))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()


def all_features(network: nn.Module, images: LabelledImages) -> Tensor:
    """Features (N, D) of all images in evaluation mode, in their order."""
    network.eval()
    with torch.inference_mode():
        parts = [
            features(network, _input(network, images.batch(indices)))
            for indices in torch.arange(len(images)).split(EVALUATION_BATCH)
        ]
    return torch.cat(parts)


def classify_by_means(
    network: nn.Module, classifier: nn.Linear, images: LabelledImages, classes: int
) -> None:
    """Set the classifier from the class means of this task's images in the network's own features.

    Classes are taken for Gaussians of one common covariance (linear discriminant analysis), which
    is shrunk towards a multiple of the identity, the more the fewer images there are (Ledoit and
    Wolf, 2004); with one image a class that is the nearest class mean. Logits are then scaled to
    fit the labels best, so that the first gradients are neither tiny nor huge.
    """
    means, counts, covariance, rows = _class_statistics(
        all_features(network, images).double(), images.labels, classes
    )
    center = (means * counts[:, None]).sum(0) / counts.sum()
    weight = torch.linalg.solve(covariance, (means - center).T).T
    bias = -0.5 * (weight * (means + center)).sum(1) + torch.log(counts / counts.sum())
    logits = rows @ weight.T + bias
    scales = torch.logspace(-2, 0.5, 26, dtype=torch.float64)
    losses = [functional.cross_entropy(logits * s, images.labels) for s in scales]
    scale = scales[int(torch.stack(losses).argmin())]
    with torch.no_grad():
        classifier.weight.copy_((weight * scale).to(classifier.weight))
        classifier.bias.copy_((bias * scale).to(classifier.bias))


def _class_statistics(
    rows: Tensor, labels: Tensor, classes: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    counts = torch.bincount(labels, minlength=classes).double()
    means = torch.zeros(classes, rows.shape[1], dtype=rows.dtype).index_add_(0, labels, rows)
    means /= counts.clamp(min=1)[:, None]
    within = rows - means[labels]
    count, width = within.shape
    sample = within.T @ within / count
    level = sample.diagonal().mean().clamp(min=1e-12)
    target = level * torch.eye(width, dtype=rows.dtype)
    distance = (sample - target).square().sum()
    noise = (within.square().sum(1).square().sum() / count - sample.square().sum()) / count
    shrink = (noise / distance).clamp(0.01, 1.0) if distance > 0 else torch.tensor(1.0).double()
    return means, counts, (1 - shrink) * sample + shrink * target, rows


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
    total = max(settings.iterations, 1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimiser, total, eta_min=settings.learning_rate / 20
    )
    losses = []
    stream = batches(len(images), settings.batch_size, generator)
    for iteration in range(settings.iterations):
        indices = next(stream)
        with _tuning(network, len(indices)):
            logits = network(_input(network, images.batch(indices)))
            loss = functional.cross_entropy(logits, images.labels[indices])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
        losses.append(loss.item())
        if after_backward is not None:
            after_backward(iteration)
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


def accuracy(network: nn.Module, images: LabelledImages) -> float:
    """The share of images classified right, in [0, 1]; NaN where there are none."""
    network.eval()
    right = 0
    with torch.inference_mode():
        for indices in torch.arange(len(images)).split(EVALUATION_BATCH):
            logits = network(_input(network, images.batch(indices)))
            right += int((logits.argmax(1) == images.labels[indices]).sum())
    return right / len(images) if len(images) else float("nan")


def _input(network: nn.Module, images: Tensor) -> Tensor:
    """Images where the network is, channels last: convolutions on CPUs are up to twice as fast so."""
    device = next(network.parameters()).device
    return images.to(device, memory_format=torch.channels_last)
