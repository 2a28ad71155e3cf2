"""Adaptation: a network becomes one task's own. The same for devices, seeding, and every baseline."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from common.backbone import Backbone
from common.fine_tune import FineTuneSettings, fine_tune
from common.fitting import GaussianClasses, accuracy, fit, start_from_means
from common.importance import Taylor, rank
from common.mask import Mask
from common.pruning import Pruned, PruningSettings, prune_iteratively
from common.rebuild import rebuild
from common.subnetwork import cut
from common.task_data import Task

Progress = Callable[[int, int], None]
"""Called with iterations done and iterations in all."""


@dataclass(frozen=True)
class Adapted:
    """A network fitted to its task, the units it holds and how they rank, and how it went.

    `accuracies` are on the evaluation images, by iterations done, from 0 on; `seconds` by step.
    """

    pruned: Pruned
    accuracies: dict[int, float]
    seconds: dict[str, float]

    @property
    def network(self) -> nn.Module:
        """The network, in evaluation mode."""
        return self.pruned.network

    @property
    def before(self) -> float:
        """Accuracy before the first iteration, everything fitted that costs no gradient."""
        return self.accuracies[0]

    @property
    def after(self) -> float:
        """Accuracy in the end."""
        return self.accuracies[max(self.accuracies)]


def adapt_network(
    network: nn.Module,
    backbone: Backbone,
    mask: Mask,
    task: Task,
    settings: FineTuneSettings,
    generator: torch.Generator,
    *,
    target: Sequence[int] | None = None,
    pruning: PruningSettings | None = None,
    evaluate_at: Sequence[int] = (),
    progress: Progress | None = None,
) -> Adapted:
    """Adapt a network, cut by `mask`, to a task in a few iterations.

    Batch norm and classifier are fitted first, which costs no gradient; then all parameters are
    tuned, and units ranked by first-order Taylor; then batch norm and classifier are fitted once
    more, to what the features have become. With `pruning`, the network is pruned to `target` units
    per group on the way. Without iterations, units are ranked and cut by gradients of a few batches.
    Accuracy is measured before, after, and at `evaluate_at` iterations, each time on a copy fitted
    likewise; evaluation images have no other part in this.
    """
    clock = _Clock()

    def fitted_to_task(network: nn.Module, generator: torch.Generator) -> GaussianClasses:
        return fit(network, backbone, task.train, len(task.classes), generator, settings.fit_images)

    with clock.of("fit"):
        found = fitted_to_task(network, generator)
    with clock.of("evaluate"):
        accuracies = {0: accuracy(network, task.evaluation)}

    def after_iteration(done: int, current: nn.Module) -> None:
        if progress is not None:
            progress(done, settings.iterations)
        if done in evaluate_at and done < settings.iterations:
            with clock.of("evaluate"):
                fitted = copy.deepcopy(current)
                fitted_to_task(fitted, torch.Generator().manual_seed(done))
                accuracies[done] = accuracy(fitted, task.evaluation)

    with clock.of("tune"):
        start_from_means(network, backbone, task.train, found)
        if settings.iterations == 0:
            pruned = _ranked(
                network, backbone, mask, task, settings, generator, target if pruning else None
            )
        elif pruning is not None and target is not None and tuple(target) != mask.counts:
            pruned = prune_iteratively(
                network,
                backbone,
                mask,
                target,
                task.train,
                settings,
                pruning,
                generator,
                after_iteration=after_iteration,
            )
        else:
            taylor = Taylor(network, mask)
            fine_tune(
                network,
                task.train,
                settings,
                generator,
                after_backward=taylor.observe,
                after_iteration=lambda done: after_iteration(done, network),
            )
            pruned = Pruned(network, mask, taylor.scores())
    with clock.of("fit"):
        fitted_to_task(pruned.network, generator)
    with clock.of("evaluate"):
        after = accuracy(pruned.network, task.evaluation)
    accuracies[settings.iterations] = after
    return Adapted(pruned, accuracies, clock.seconds)


def _ranked(
    network: nn.Module,
    backbone: Backbone,
    mask: Mask,
    task: Task,
    settings: FineTuneSettings,
    generator: torch.Generator,
    target: Sequence[int] | None,
) -> Pruned:
    """What is left to do without iterations: rank the units, and cut once where there is a target."""
    scores = rank(network, mask, task.train, settings.batch_size, generator)
    if not target:
        return Pruned(network, mask, scores)
    smaller = Mask.keep_top(mask.structure, scores, target)
    return Pruned(rebuild(backbone, cut(network.state_dict(), smaller, within=mask)), smaller, scores)


class _Clock:
    """Seconds by step; the time of a step inside another one is the inner step's alone."""

    def __init__(self) -> None:
        self.seconds = {"fit": 0.0, "tune": 0.0, "evaluate": 0.0}
        self._inner = 0.0

    @contextmanager
    def of(self, step: str) -> Iterator[None]:
        began, outer, self._inner = time.perf_counter(), self._inner, 0.0
        yield
        took = time.perf_counter() - began
        self.seconds[step] += took - self._inner
        self._inner = outer + took
