"""Tuning a network on a task: a few iterations of gradient descent over its parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from common.backbone import Backbone
from common.deadline import Deadline
from common.errors import Diverged, InputError
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


AfterBackward = Callable[[int], None]
"""Called with the iteration's number (from 0), when gradients are there and no step is taken yet."""
MOMENTUM, RANDOMNESS = "momentum.", "randomness"
"""Names of the tensors in `FineTuning.stored`: a prefix before each parameter's name, and a name."""


class FineTuning:
    """Gradient descent over those parameters of a network that want a gradient, in place.

    It can be stored between two iterations, and goes on from there in another process: with the same
    network, images and settings it comes to the same weights as without a stop, up to rounding.

    Batch norm normalises by the batch and follows it while tuning. By the deadline, one iteration is
    done at least; another one only while as much time is left as the longest took. The learning rate
    falls along a cosine, by iterations or by time, whichever is further on.
    """

    def __init__(
        self,
        network: nn.Module,
        images: LabelledImages,
        settings: FineTuneSettings,
        generator: torch.Generator,
    ) -> None:
        self.network = network
        self.done = 0
        """Iterations that are done."""
        self._images = images
        self._settings = settings
        self._tuned = {n: p for n, p in network.named_parameters() if p.requires_grad}
        self._optimiser = torch.optim.SGD(
            self._tuned.values(),
            lr=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            nesterov=settings.momentum > 0,
        )
        self._generator = generator
        self._batches: Iterator[Tensor] | None = None
        self._randomness: Tensor | None = None
        """The generator's state when the first batch was drawn."""

    def run(
        self,
        *,
        deadline: Deadline | None = None,
        after_backward: AfterBackward | None = None,
        after_iteration: Callable[[int], None] | None = None,
    ) -> None:
        """Do the iterations that are left.

        `after_iteration` is called with the number of iterations done, and may evaluate: the training
        mode is restored. Diverged as soon as a loss is not finite, or where the weights are not in the
        end.
        """
        settings, began, longest = self._settings, self.done, 0.0
        while self.done < settings.iterations:
            if deadline is not None and self.done > began and deadline.left < longest:
                break
            step = Deadline.after(0)
            self._set_learning_rate(deadline)
            self._iterate(after_backward)
            self.done += 1
            longest = max(longest, step.spent)
            if after_iteration is not None:
                after_iteration(self.done)
        self.network.eval()
        self._optimiser.zero_grad(set_to_none=True)
        # The last step's gradients and weights have no loss after them to show in.
        if self.done and not all(map(is_finite, self._tuned.values())):
            raise _diverged("weights are not finite", self.done - 1, settings)

    def stored(self) -> dict[str, Tensor]:
        """What has to be kept, besides the network and `done`: momentum, and where the draws began."""
        momentum = {
            f"{MOMENTUM}{name}": self._optimiser.state[parameter]["momentum_buffer"]
            for name, parameter in self._tuned.items()
            if self._optimiser.state[parameter].get("momentum_buffer") is not None
        }
        randomness = self._generator.get_state() if self._randomness is None else self._randomness
        return {RANDOMNESS: randomness, **momentum}

    def go_on(self, done: int, stored: Mapping[str, Tensor]) -> None:
        """Go on after so many iterations, with what `stored` gave then. KeyError where tensors lack."""
        self._generator.set_state(stored[RANDOMNESS])
        for _ in range(done):
            self._next_batch()
        for name, parameter in self._tuned.items():
            if self._settings.momentum and done:
                self._optimiser.state[parameter]["momentum_buffer"] = stored[f"{MOMENTUM}{name}"]
        self.done = done

    def _iterate(self, after_backward: AfterBackward | None) -> None:
        settings = self._settings
        indices = self._next_batch()
        with _tuning(self.network, len(parts_of(indices, settings.micro_batch)[-1])):
            self._optimiser.zero_grad(set_to_none=True)
            loss = add_gradients(
                self.network, self._images, indices, settings.micro_batch, settings.precision
            )
        if not math.isfinite(loss):
            raise _diverged(f"the loss is {loss}", self.done, settings)
        if after_backward is not None:
            after_backward(self.done)
        nn.utils.clip_grad_norm_(self._tuned.values(), settings.clip_norm)
        self._optimiser.step()

    def _next_batch(self) -> Tensor:
        if self._batches is None:
            self._randomness = self._generator.get_state()
            self._batches = batches(len(self._images), self._settings.batch_size, self._generator)
        return next(self._batches)

    def _set_learning_rate(self, deadline: Deadline | None) -> None:
        settings, share = self._settings, self.done / self._settings.iterations
        if deadline is not None:
            share = max(share, deadline.share_spent)
        height = settings.final_rate + (1 - settings.final_rate) * (1 + math.cos(math.pi * share)) / 2
        for group in self._optimiser.param_groups:
            group["lr"] = settings.learning_rate * height


def _diverged(what: str, iteration: int, settings: FineTuneSettings) -> Diverged:
    return Diverged(
        f"tuning diverged: {what} in iteration {iteration + 1} of {settings.iterations}, at a learning "
        f"rate of {settings.learning_rate:g}; give a smaller one"
    )


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
