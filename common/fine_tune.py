"""Tuning a network on a task: a few iterations of gradient descent over its parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from common.backbone import Backbone
from common.deadline import Deadline
from common.errors import Diverged
from common.finite import is_finite
from common.gradients import add_gradients, parts_of
from common.images import LabelledImages, batches
from common.tuning_settings import FineTuneSettings, Tuned

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
