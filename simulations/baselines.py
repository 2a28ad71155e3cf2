"""What a device would get instead: other masks of the same size, and other ways to a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import timm
import torch

from common.adaptation import Adapted, adapt_network
from common.backbone import Backbone, Weights
from common.fine_tune import FineTuneSettings
from common.fitting import fit, start_from_means
from common.importance import magnitude, rank
from common.mask import Mask, Scores
from common.pruning import PruningSettings
from common.rebuild import rebuild
from common.structure import Structure
from common.subnetwork import cut
from common.task_data import Task


@dataclass(frozen=True)
class Contest:
    """One task, one size, one way of tuning: all that alternatives must have in common."""

    backbone: Backbone
    weights: Weights
    structure: Structure
    task: Task
    counts: tuple[int, ...]
    settings: FineTuneSettings
    seed: int
    evaluate_at: tuple[int, ...]

    @property
    def generator(self) -> torch.Generator:
        """The same randomness for every alternative."""
        return torch.Generator().manual_seed(self.seed)

    def features_of(self) -> dict[str, torch.Tensor]:
        """The backbone's weights without its classifier: copies."""
        names = self.backbone.classifier_tensors
        return {k: v.clone() for k, v in self.weights.items() if k not in names}

    def adapt(self, mask: Mask, **options: Any) -> Adapted:
        """The network that a mask cuts out, adapted; `options` go to `adapt_network`."""
        network = rebuild(self.backbone, cut(self.features_of(), mask), len(self.task.classes), mask)
        settings = options.pop("settings", self.settings)
        return adapt_network(
            network, self.backbone, mask, self.task, settings, self.generator,
            evaluate_at=self.evaluate_at, **options,
        )  # fmt: skip

    def top(self, scores: Scores) -> Mask:
        """The best-scored units, as many as the contest allows."""
        return Mask.keep_top(self.structure, scores, self.counts)


def random_mask(contest: Contest) -> Adapted:
    """Units drawn by lot."""
    lot = np.random.default_rng(contest.seed)
    return contest.adapt(contest.top({g.name: lot.random(g.units) for g in contest.structure.groups}))


def l1_mask(contest: Contest) -> Adapted:
    """Units of the largest weights: the backbone's importance, the same for every task."""
    return contest.adapt(contest.top(magnitude(contest.weights, contest.structure)))


def taylor_mask(contest: Contest) -> Adapted:
    """Units that first-order Taylor ranks best on the device's own data, in the whole backbone."""
    network = rebuild(contest.backbone, contest.features_of(), len(contest.task.classes))
    found = fit(
        network,
        contest.backbone,
        contest.task.train,
        len(contest.task.classes),
        contest.generator,
        contest.settings.fit_images,
    )
    start_from_means(network, contest.backbone, contest.task.train, found)
    scores = rank(
        network,
        Mask.full(contest.structure),
        contest.task.train,
        contest.settings.batch_size,
        contest.generator,
    )
    return contest.adapt(contest.top(scores))


def scratch(contest: Contest) -> Adapted:
    """The same small network from random weights."""
    mask = contest.top(magnitude(contest.weights, contest.structure))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(contest.seed)
        fresh = timm.create_model(
            contest.backbone.model,
            num_classes=contest.backbone.num_classes,
            **contest.backbone.arguments,
        ).state_dict()
    return replace(contest, weights=fresh).adapt(mask)


def dense(contest: Contest) -> Adapted:
    """The whole backbone, tuned: what a device without a budget would have."""
    return contest.adapt(Mask.full(contest.structure))


def iterative(iterations: int, rounds: int) -> Callable[[Contest], Adapted]:
    """Conventional iterative pruning of the whole backbone on the device, in so many iterations."""

    def prune(contest: Contest) -> Adapted:
        return contest.adapt(
            Mask.full(contest.structure),
            target=contest.counts,
            pruning=PruningSettings(rounds=rounds),
            settings=replace(contest.settings, iterations=iterations),
        )

    return prune


Alternative = Callable[[Contest], Adapted]

ALTERNATIVES: dict[str, Alternative] = {
    "random": random_mask,
    "L1": l1_mask,
    "Taylor": taylor_mask,
    "scratch": scratch,
    "dense": dense,
}
"""Name in tables and plots -> what it does; those that vote are the server's own."""


def farthest(similarities: np.ndarray, count: int) -> list[int]:
    """Indices of the `count` least similar tasks: a vote by them tells what nearness is worth."""
    return np.argsort(similarities, kind="stable")[:count].tolist()
