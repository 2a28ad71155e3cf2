"""Tuning a network on a task: a few iterations of gradient descent over its parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn

from common.backbone import Backbone
from common.deadline import Deadline
from common.errors import InputError
from common.finite import is_finite
from common.gradients import PRECISIONS, Precision, add_gradients, parts_of
from common.images import LabelledImages, batches

Tuned = Literal["all", "head"]
TUNED: tuple[Tuned, ...] = get_args(Tuned)


@dataclass(frozen=True)
class FineTuneSettings:
    """How a sub-network is tuned on a task, and what that may take of the device.

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
    micro_batch: int = 0
    """Images that are in memory at a time, their gradients averaged over the batch; 0 is all of them.
    Without batch norm that changes nothing else; batch norm normalises by what is in memory, and a
    single image by the statistics that there are."""
    tuned: Tuned = "all"
    """All parameters, or those of the head alone: the classifiers', and norms' scales and shifts."""
    precision: Precision = "fp32"
    """With bf16 layers compute in half the bits where that is known to do, which saves time on CPUs that
    have it and costs time on others; weights and gradients stay as they are."""
    max_seconds: float | None = None
    """How long adapting may take: tuning ends early, its learning rate having fallen; None: any time."""
    max_memory: float | None = None
    """Bytes that the process may hold meanwhile; see `memory_limit`; None: any number."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "learning_rate", "clip_norm", "fit_images"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} is {getattr(self, name)}; it must be above 0")
        if self.iterations < 0:
            raise InputError(f"iterations are {self.iterations}; they cannot be negative")
        if self.micro_batch < 0:
            raise InputError(f"micro_batch is {self.micro_batch} images; give 0 for the whole batch")
        for name, known in (("tuned", TUNED), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise InputError(f"{name} is {getattr(self, name)!r}; choose {' or '.join(known)}")
        for name in ("max_seconds", "max_memory"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{name} is {value}; it must be above 0, or left out for no limit")


class Diverged(InputError):
    """Tuning whose loss or weights are not finite any more."""


AfterBackward = Callable[[int], None]
"""Called with the iteration's number (from 0), when gradients are there and no step is taken yet."""


@dataclass(frozen=True)
class Tuning:
    """What tuning came to: iterations done, and the mean loss of the last tenth of them (NaN if none)."""

    iterations: int
    loss: float


def fine_tune(
    network: nn.Module,
    images: LabelledImages,
    settings: FineTuneSettings,
    generator: torch.Generator,
    *,
    deadline: Deadline | None = None,
    after_backward: AfterBackward | None = None,
    after_iteration: Callable[[int], None] | None = None,
) -> Tuning:
    """Tune those parameters in place that want a gradient; all of a network just rebuilt do.

    Batch norm normalises by the batch and follows it while tuning. `after_iteration` is called with
    the number of iterations done, and may evaluate: the training mode is restored. By the deadline, one
    iteration is done at least; another one only while as much time is left as the longest took.

    Diverged as soon as a loss is not finite, or where the weights are not in the end.
    """
    tuned = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimiser = torch.optim.SGD(
        tuned,
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
    losses: list[float] = []
    longest = 0.0
    stream = batches(len(images), settings.batch_size, generator)
    for iteration in range(settings.iterations):
        if deadline is not None:
            if losses and deadline.left < longest:
                break
            _hasten(optimiser, settings, iteration, deadline)
        step = Deadline.after(0)
        indices = next(stream)
        with _tuning(network, len(parts_of(indices, settings.micro_batch)[-1])):
            optimiser.zero_grad(set_to_none=True)
            loss = add_gradients(network, images, indices, settings.micro_batch, settings.precision)
        if not math.isfinite(loss):
            raise _diverged(f"the loss is {loss}", iteration, settings)
        losses.append(loss)
        if after_backward is not None:
            after_backward(iteration)
        nn.utils.clip_grad_norm_(tuned, settings.clip_norm)
        optimiser.step()
        schedule.step()
        longest = max(longest, step.spent)
        if after_iteration is not None:
            after_iteration(iteration + 1)
    network.eval()
    optimiser.zero_grad(set_to_none=True)
    # The last step's gradients and weights have no loss after them to show in.
    if losses and not all(map(is_finite, tuned)):
        raise _diverged("weights are not finite", len(losses) - 1, settings)
    last = losses[-max(1, len(losses) // 10) :]
    return Tuning(len(losses), sum(last) / len(last) if last else float("nan"))


def _diverged(what: str, iteration: int, settings: FineTuneSettings) -> Diverged:
    return Diverged(
        f"tuning diverged: {what} in iteration {iteration + 1} of {settings.iterations}, at a learning "
        f"rate of {settings.learning_rate:g}; give a smaller one"
    )


def _hasten(
    optimiser: torch.optim.Optimizer, settings: FineTuneSettings, iteration: int, deadline: Deadline
) -> None:
    """The learning rate of the cosine's place: by iterations, or by time where that is further on."""
    share = max(iteration / settings.iterations, deadline.share_spent)
    height = settings.final_rate + (1 - settings.final_rate) * (1 + math.cos(math.pi * share)) / 2
    for group in optimiser.param_groups:
        group["lr"] = settings.learning_rate * height


@contextmanager
def _tuning(network: nn.Module, images: int) -> Iterator[None]:
    network.train(images > 1)
    yield
    network.eval()


@contextmanager
def only_tuned(network: nn.Module, backbone: Backbone, tuned: Tuned) -> Iterator[None]:
    """Let only the parameters want a gradient that are tuned; afterwards all those that did before.

    The head is the classifiers and the norms' own parameters. A norm is told by its name: timm has
    many that share no class.
    """
    if tuned == "all":
        yield
        return
    classifiers = [network.get_submodule(name) for name in backbone.classifiers]
    norms = [module for module in network.modules() if "norm" in type(module).__name__.lower()]
    head = {
        parameter for module in (*classifiers, *norms) for parameter in module.parameters(recurse=False)
    }
    others = [p for p in network.parameters() if p.requires_grad and p not in head]
    try:
        for parameter in others:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)
