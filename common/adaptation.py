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
from common.device_limits import DeviceLimits
from common.fine_tune import Diverged, FineTuneSettings
from common.fitting import Fitted, accuracy, fit, start_from_means
from common.importance import rank
from common.mask import Mask
from common.process_memory import give_back
from common.pruning import Pruned, PruningSettings, prune_iteratively, tune_and_rank
from common.rebuild import rebuild
from common.subnetwork import cut
from common.task_data import Task

Progress = Callable[[int, int], None]
"""Called with iterations done and iterations in all."""


@dataclass(frozen=True)
class Adapted:
    """A network fitted to its task, the units it holds and how they rank, and how it went.

    `accuracies` are on the evaluation images, by iterations done, from 0 on; `seconds` by step;
    `remarks` say in sentences what limits of time and memory changed.
    """

    pruned: Pruned
    accuracies: dict[int, float]
    seconds: dict[str, float]
    remarks: tuple[str, ...] = ()

    @property
    def iterations(self) -> int:
        """Iterations that were done: those asked for, unless time was short."""
        return max(self.accuracies)

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

    Within `settings.max_seconds` fewer iterations are done, none where there is no time for one, and the
    network is kept untuned, and ranked so, where tuning made it worse or diverged; fitting, judging and
    ranking by one batch are done in any time. Within `settings.max_memory` fewer images are in memory at
    once, or an InputError tells how much is needed. Without limits of time, Diverged is raised.
    """
    clock = _Clock()
    with clock.of("fit"):
        limits = DeviceLimits.of(network, backbone, task, settings)
        settings = limits.settings

    def fitted_to_task(network: nn.Module, generator: torch.Generator) -> Fitted:
        classes = len(task.classes)
        return fit(network, backbone, task.train, classes, generator, settings.fit_images, limits.batch)

    with clock.of("fit"):
        fitted = fitted_to_task(network, generator)
    with clock.of("evaluate"):
        accuracies = {0: accuracy(network, task.evaluation, limits.batch)}
    done = 0

    def after_iteration(number: int, current: nn.Module) -> None:
        nonlocal done
        done = number
        if progress is not None:
            progress(done, settings.iterations)
        if done in evaluate_at and done < settings.iterations and limits.time_to_evaluate:
            with clock.of("evaluate"):
                copied = copy.deepcopy(current)
                fitted_to_task(copied, torch.Generator().manual_seed(done))
                accuracies[done] = accuracy(copied, task.evaluation, limits.batch)

    def tuned() -> Pruned:
        if pruning is not None and target is not None and tuple(target) != mask.counts:
            return prune_iteratively(
                network,
                backbone,
                mask,
                target,
                task.train,
                settings,
                pruning,
                generator,
                deadline=limits.tuning_deadline,
                after_iteration=after_iteration,
            )
        _, scores = tune_and_rank(
            network,
            backbone,
            mask,
            task.train,
            settings,
            generator,
            deadline=limits.tuning_deadline,
            after_iteration=lambda number: after_iteration(number, network),
        )
        return Pruned(network, mask, scores)

    with clock.of("tune"):
        least = 1 + pruning.rounds if pruning is not None else 1
        tunes = limits.begin_tuning(network, fitted, clock.seconds, least)
        if tunes or settings.iterations == 0:
            start_from_means(network, backbone, fitted)
        del fitted
        give_back()
        if tunes:
            try:
                pruned = tuned()
            except Diverged as diverged:
                limits.give_up_tuning(network, diverged)
                tunes = False
        if not tunes:
            pruned = _ranked(
                network, backbone, mask, task, limits, generator, target if pruning else None
            )
        give_back()
    if not tunes and settings.iterations and pruned.network is network:
        accuracies[done] = accuracies[0]  # it is as it was fitted
        return Adapted(pruned, accuracies, clock.seconds, tuple(limits.remarks))
    with clock.of("fit"):
        fitted = fitted_to_task(pruned.network, generator)
        kept = not tunes or limits.end_tuning(pruned.network, fitted, done)
        del fitted
        give_back()
    if not kept:
        with clock.of("tune"):
            pruned = _ranked(pruned.network, backbone, pruned.mask, task, limits, generator, None)
    with clock.of("evaluate"):
        accuracies[done] = (
            accuracy(pruned.network, task.evaluation, limits.batch) if kept else accuracies[0]
        )
    return Adapted(pruned, accuracies, clock.seconds, tuple(limits.remarks))


def _ranked(
    network: nn.Module,
    backbone: Backbone,
    mask: Mask,
    task: Task,
    limits: DeviceLimits,
    generator: torch.Generator,
    target: Sequence[int] | None,
) -> Pruned:
    """What is left to do without iterations: rank the units, and cut once where there is a target."""
    settings = limits.settings
    scores = rank(
        network,
        mask,
        task.train,
        settings.batch_size,
        generator,
        limits.ranking_batches,
        micro_batch=settings.micro_batch,
        precision=settings.precision,
    )
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
