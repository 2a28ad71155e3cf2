"""Adaptation: a network becomes one task's own. The same for devices, seeding, and every baseline."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from common.backbone import Backbone, weights_digest
from common.best_network import BestNetwork, held_out
from common.device_limits import DeviceLimits
from common.errors import Diverged, InputError
from common.fine_tune import FineTuneSettings
from common.fitting import Fitted, accuracy, examine, start_from_means
from common.images import SomeImages
from common.importance import rank
from common.mask import Mask, Scores
from common.process_memory import give_back
from common.pruning import Pruned, PruningSettings, reachable, stages_of
from common.rebuild import rebuild
from common.subnetwork import cut
from common.task_data import Task
from common.tuning import Tuning
from common.tuning_file import TuningFile

Progress = Callable[[int, int], None]
"""Called with iterations done and iterations in all: at the start, and after each."""
COMPARED_EVERY, COMPARED_SHARE, COMPARING_TIME = 25, 0.1, 0.2
"""Iterations after which the network is compared with the best one so far: so many, at least this share
of all, and so seldom that comparing takes at most this share of the time that tuning takes."""


@dataclass(frozen=True)
class Adapted:
    """A network fitted to its task, the units it holds and how they rank, and how it went.

    `accuracies` are on the evaluation images, by iterations done, from 0 on: the last one is that of the
    network that was kept, which is the one after `kept` iterations. `seconds` are by step. `held_out` is
    how many training images chose it. `remarks` say in sentences what limits of time and memory changed.
    """

    pruned: Pruned
    accuracies: dict[int, float]
    seconds: dict[str, float]
    remarks: tuple[str, ...] = ()
    kept: int = 0
    held_out: int = 0

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
        """Accuracy of the network that was kept."""
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
    file: TuningFile | None = None,
) -> Adapted:
    """Adapt a network, cut by `mask`, to a task in a few iterations.

    Fit: batch norm and classifier, which costs no gradient. Tune and rank: all parameters are tuned, and
    units ranked by first-order Taylor; with `pruning`, the network is cut to `target` units per group on
    the way. Keep the best: a part of the training images is held out from tuning and compares the
    network as it was fitted, some on the way (see COMPARED_EVERY) and the last one, each with its
    classifier fitted anew. With `pruning`, only networks of the final size are compared: the first one is
    what gradients of a few batches rank and cut before any iteration. The one of the lowest cross-entropy
    is kept; of equal ones the later. Evaluation images and `evaluate_at` have no part in this: they give
    the accuracy before, after, and at those iterations.

    Within `settings.max_seconds` fewer iterations are done, none where there is no time for one, and the
    best network is kept where tuning diverges; fitting, judging and ranking by one batch are done in any
    time. Without a limit of time, Diverged is raised: another learning rate can be tried. Within
    `settings.max_memory` fewer images are in memory at once, or an InputError tells how much is needed.

    With a `file`, an adaptation that ends halfway goes on where the file was written last, and comes to
    the same network. Whoever has kept the result removes the file.
    """
    work = _Adaptation(network, backbone, mask, task, settings, generator, evaluate_at, progress)
    del network
    work.begin(target, pruning, file)
    if not work.goes_on:
        work.fit()
    if work.has_time_to_tune():
        work.tune()
    return work.best()


class _Adaptation:
    """One adaptation: what it is given, and how far it has come."""

    def __init__(
        self,
        network: nn.Module,
        backbone: Backbone,
        mask: Mask,
        task: Task,
        settings: FineTuneSettings,
        generator: torch.Generator,
        evaluate_at: Sequence[int],
        progress: Progress | None,
    ) -> None:
        self._network = network
        self._backbone = backbone
        self._mask = mask
        self._task = task
        self._settings = settings
        self._generator = generator
        self._evaluate_at = evaluate_at
        self._progress = progress
        self._clock = _Clock()
        self._accuracies: dict[int, float] = {}
        self._once: dict[str, float] = {}
        """Seconds that fitting and judging took the first time."""
        self._best = BestNetwork(mask)
        self.goes_on = False
        """Whether a file told how far it had come."""

    def begin(
        self,
        target: Sequence[int] | None,
        pruning: PruningSettings | None,
        file: TuningFile | None,
    ) -> None:
        """Begin, or go on where the file was written last."""
        self._target = reachable(self._mask, target) if pruning is not None else None
        self._file = file
        self._identity = self._identified(pruning) if file is not None else ""
        kept = None if file is None else file.read(self._identity)
        if kept is not None:
            told = json.loads(kept[1]["adaptation"])
            self._clock.seconds = {step: float(took) for step, took in told["seconds"].items()}
            self._accuracies = {int(done): float(share) for done, share in told["accuracies"].items()}
            self._once = {step: float(took) for step, took in told["once"].items()}
        labels = self._task.train.labels
        self._held = held_out(labels, self._generator)
        own = SomeImages(self._task.train, torch.nonzero(~self._held).flatten())
        with self._clock.of("fit"):
            spent = sum(self._clock.seconds.values())
            self._limits = DeviceLimits.of(
                self._network, self._backbone, self._task, self._settings, spent
            )
            self._settings = self._limits.settings
        self._limits.tuned_seconds = self._clock.seconds["tune"]
        stages = stages_of(self._settings, self._mask, target, pruning)
        self._least_iterations = len(stages)
        self._tuning = Tuning(
            self._network, self._backbone, self._mask, own, self._settings, self._generator, stages
        )
        if kept is not None:
            self._tuning.go_on(*kept)
            self._best.go_on(*kept)
            self._network = self._tuning.network
            self.goes_on = True
        self._tell(self._tuning.done)

    def fit(self) -> None:
        """Fit batch norm and classifier, and begin to tune from there."""
        with self._clock.of("fit"):
            found = self._fitted(self._network, self._generator, tuned=False)
        with self._clock.of("evaluate"):
            self._accuracies[0] = self._accuracy(self._network)
        self._once = {step: self._clock.seconds[step] for step in ("fit", "evaluate")}
        if self._target is None:
            self._best.offer(self._network, self._mask, None, 0, found.loss)
        else:
            self._offer_cut(self._target)
        start_from_means(self._network, self._backbone, found)
        del found
        give_back()

    def has_time_to_tune(self) -> bool:
        """Whether there are iterations to do, and time for the least of them."""
        self._limits.reserve(self._once, self._looked_at)
        return self.goes_on or self._limits.time_to_tune(self._least_iterations)

    def tune(self) -> None:
        """Tune and rank, and compare what comes out with the best so far."""
        with self._clock.of("tune"):
            try:
                scores = self._tuning.run(
                    deadline=self._limits.tuning_deadline, after_iteration=self._after_iteration
                )
                self._compare(scores)
                self._limits.remark_on_time(self._tuning.done)
            except Diverged as diverged:
                if self._limits.deadline is None:
                    raise
                self._limits.remarks.append(f"{diverged}; the best network before that was kept")
            give_back()

    def best(self) -> Adapted:
        """The best network; where no iteration ranked its units, a few batches do."""
        best = self._best
        network, scores = best.network(self._backbone), best.scores
        if scores is None:
            scores = self._ranked(network, best.mask)
        done = self._tuning.done
        # Cut before any iteration, it is not the network whose accuracy was measured at 0.
        measured = best.iterations in self._accuracies and not (self._target and not best.iterations)
        with self._clock.of("evaluate"):
            self._accuracies[done] = (
                self._accuracies[best.iterations] if measured else self._accuracy(network)
            )
        return Adapted(
            Pruned(network, best.mask, scores),
            self._accuracies,
            self._clock.seconds,
            tuple(self._limits.remarks),
            best.iterations,
            int(self._held.sum()),
        )

    @property
    def _looked_at(self) -> int:
        return min(len(self._task.train), self._settings.fit_images)

    def _ranked(self, network: nn.Module, mask: Mask) -> Scores:
        settings = self._settings
        with self._clock.of("tune"):
            return rank(
                network,
                mask,
                self._task.train,
                settings.batch_size,
                self._generator,
                self._limits.ranking_batches,
                micro_batch=settings.micro_batch,
                precision=settings.precision,
            )

    def _offer_cut(self, target: Sequence[int]) -> None:
        """Offer the network of the final size that gradients of a few batches rank and cut."""
        scores = self._ranked(self._network, self._mask)
        smaller = Mask.keep_top(self._mask.structure, scores, target)
        left = cut(self._network.state_dict(), smaller, within=self._mask)
        network = rebuild(self._backbone, left)
        with self._clock.of("fit"):
            found = self._fitted(network, torch.Generator().manual_seed(0), tuned=False)
        self._best.offer(network, smaller, scores, 0, found.loss)

    def _fitted(self, network: nn.Module, generator: torch.Generator, *, tuned: bool) -> Fitted:
        """Fit batch norm and classifier of a network; what was found."""
        found = examine(
            network,
            self._task.train,
            len(self._task.classes),
            generator,
            self._settings.fit_images,
            self._limits.batch,
            held=self._held,
            tuned=tuned,
        )
        found.assign(network, self._backbone)
        return found

    def _compare(self, scores: Scores | None, *, offered: bool = True) -> None:
        """Fit the network as it is; keep it if it is offered and the best; judge it where asked for."""
        tuning, done = self._tuning, self._tuning.done
        with self._clock.of("fit"):
            found = self._fitted(tuning.network, torch.Generator().manual_seed(done), tuned=True)
        if offered:
            self._best.offer(tuning.network, tuning.mask, scores, done, found.loss)
        if done in self._evaluate_at:
            with self._clock.of("evaluate"):
                self._accuracies[done] = self._accuracy(tuning.network)

    @property
    def _compared_every(self) -> int:
        """Iterations between two comparisons; each takes two forward passes of what is looked at."""
        settings = self._settings
        passes = 2 * self._looked_at / (3 * settings.batch_size)
        share = COMPARED_SHARE * settings.iterations
        return math.ceil(max(COMPARED_EVERY, share, passes / COMPARING_TIME))

    def _after_iteration(self, done: int) -> None:
        self._tell(done)
        offered = self._tuning.at_final_size and done % self._compared_every == 0
        last, time_left = done == self._settings.iterations, self._limits.time_to_evaluate
        if (offered or done in self._evaluate_at) and not last and time_left:
            with _as_it_was(self._tuning.network, self._backbone):
                self._compare(self._tuning.scores(), offered=offered)
        if self._file is not None and self._file.due and time_left:
            self._store(self._file)

    def _tell(self, done: int) -> None:
        if self._progress is not None:
            self._progress(done, self._settings.iterations)

    def _accuracy(self, network: nn.Module) -> float:
        return accuracy(network, self._task.evaluation, self._limits.batch)

    def _store(self, file: TuningFile) -> None:
        tensors, words = self._tuning.stored()
        best_tensors, best_words = self._best.stored()
        told = {
            "seconds": self._clock.so_far,
            "accuracies": self._accuracies,
            "once": self._once,
        }
        words = {**words, **best_words, "adaptation": json.dumps(told)}
        try:
            file.write(self._identity, {**tensors, **best_tensors}, words)
        except InputError as error:
            remark = f"{error}; how far tuning had come was not kept"
            if remark not in self._limits.remarks:
                self._limits.remarks.append(remark)

    def _identified(self, pruning: PruningSettings | None) -> str:
        """A digest of what is asked for: settings, labels, network and random state, but no limits."""
        digest = hashlib.sha256(self._generator.get_state().numpy().tobytes())
        for labels in (self._task.train.labels, self._task.evaluation.labels):
            digest.update(labels.numpy().tobytes())
        settings = replace(self._settings, max_seconds=None, max_memory=None)
        told = (settings, pruning, self._target, self._mask.digest, self._task.classes)
        digest.update(f"{told} {weights_digest(self._network.state_dict())}".encode())
        return digest.hexdigest()


@contextmanager
def _as_it_was(network: nn.Module, backbone: Backbone) -> Iterator[None]:
    """Put batch norms' statistics and the classifier back as they are now."""
    places: list[Tensor] = list(network.buffers())
    for name in backbone.classifiers:
        places += [parameter.data for parameter in network.get_submodule(name).parameters()]
    before = [place.clone() for place in places]
    yield
    for place, tensor in zip(places, before, strict=True):
        place.copy_(tensor)


class _Clock:
    """Seconds by step; the time of a step inside another one is the inner step's alone."""

    def __init__(self) -> None:
        self.seconds = {"fit": 0.0, "tune": 0.0, "evaluate": 0.0}
        self._inner = 0.0
        self._running: list[tuple[str, float]] = []

    @property
    def so_far(self) -> dict[str, float]:
        """Seconds by step, those of steps that are not over included."""
        seconds = dict(self.seconds)
        if self._running:
            step, began = self._running[0]
            seconds[step] += time.perf_counter() - began - self._inner
        return seconds

    @contextmanager
    def of(self, step: str) -> Iterator[None]:
        """Count the time from here on as this step's."""
        began, outer, self._inner = time.perf_counter(), self._inner, 0.0
        self._running.append((step, began))
        try:
            yield
        finally:
            self._running.pop()
            took = time.perf_counter() - began
            self.seconds[step] += took - self._inner
            self._inner = outer + took
