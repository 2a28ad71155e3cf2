"""What a device would get without a library: masks of the same size by other criteria, and other ways to
a network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import timm
import torch
from torch.nn import functional

from common.adaptation import Adapted
from common.backbone import Backbone, Weights
from common.fitting import accuracy, fit, on_device_of, start_from_means
from common.images import batches
from common.importance import RANKING_BATCHES, magnitude, rank
from common.mask import Mask, Scores
from common.pruning import Pruned
from common.structure import Structure
from common.tuning_settings import PruningSettings
from simulations.contest import Contest

Choose = Callable[[Contest], Mask]
"""Chooses the units of a network of the contest's size."""

Adapt = Callable[[Contest], Adapted]
"""Comes to an adapted network by itself."""


def random_mask(contest: Contest) -> Mask:
    """Units drawn by lot."""
    lot = np.random.default_rng(contest.seed)
    return contest.top({g.name: lot.random(g.units) for g in contest.structure.groups})


def l1_mask(contest: Contest) -> Mask:
    """Units of the largest weights: the backbone's importance, the same for every task."""
    return contest.top(contest.importance)


def l2_mask(contest: Contest) -> Mask:
    """Units of the largest weights by their squares."""
    return contest.top(magnitude(contest.weights, contest.structure, order=2))


def taylor_mask(contest: Contest) -> Mask:
    """Units that first-order Taylor ranks best on the device's own data, in the whole backbone."""
    return contest.top(taylor_scores(contest))


def taylor_scores(contest: Contest) -> Scores:
    """First-order Taylor importance of all units on the device's own data."""
    everything, size = Mask.full(contest.structure), contest.settings.batch_size
    return rank(_on_the_task(contest), everything, contest.task.train, size, contest.generator)


def snip_mask(contest: Contest) -> Mask:
    """Units whose reading weights matter most to the loss, each by itself (SNIP, Lee et al., 2019).

    Of every weight |weight x gradient|, the gradient over several batches, summed over the weights
    that read a unit; Taylor sums them before it takes the absolute value.
    """
    network = _on_the_task(contest)
    images, generator = contest.task.train, contest.generator
    for _, indices in zip(
        range(RANKING_BATCHES), batches(len(images), contest.settings.batch_size, generator), strict=False
    ):
        logits = network(on_device_of(network, images.batch(indices)))
        functional.cross_entropy(logits, images.labels[indices].to(logits.device)).backward()
    parameters = dict(network.named_parameters())
    scores = {}
    for group in contest.structure.groups:
        total = np.zeros(group.units)
        for member in group.members:
            weight = parameters.get(member.tensor) if member.reads else None
            if weight is not None and weight.grad is not None:
                each = (weight.detach() * weight.grad).abs().movedim(member.dim, 0).flatten(1).sum(1)
                own = member.unit_of >= 0
                np.add.at(total, member.unit_of[own], each.double().cpu().numpy()[own])
        scores[group.name] = total
    return contest.top(scores)


def torch_pruning_mask(importance: str) -> Choose:
    """Units that Torch-Pruning's own importance ranks best, group by group."""

    def choose(contest: Contest) -> Mask:
        return contest.top(_torch_pruning_scores(contest, importance))

    return choose


def _torch_pruning_scores(contest: Contest, importance: str) -> Scores:
    import torch_pruning

    measure = getattr(torch_pruning.importance, importance)()
    network = _on_the_task(contest)
    if "Taylor" in importance:
        images, size = contest.task.train, contest.settings.batch_size
        indices = torch.randperm(len(images), generator=contest.generator)[: size * RANKING_BATCHES]
        for part in indices.split(size):
            logits = network(on_device_of(network, images.batch(part)))
            functional.cross_entropy(logits, images.labels[part].to(logits.device)).backward()
    graph = torch_pruning.DependencyGraph()
    graph.build_dependency(network, on_device_of(network, contest.task.train.batch(torch.arange(2))))
    modules = dict(network.named_modules())
    scores = {}
    for group in contest.structure.groups:
        tensor, _, _ = group.name.rpartition(":")
        root = modules[tensor.removesuffix(".weight")]
        prune = torch_pruning.prune_linear_out_channels
        if isinstance(root, torch.nn.Conv2d):
            prune = torch_pruning.prune_conv_out_channels
        width = root.weight.shape[0]
        found = measure(graph.get_pruning_group(root, prune, idxs=list(range(width))))
        per_index = found.detach().double().cpu().numpy()
        # Its scores are relative to their mean, and no numbers where all of them are zero.
        per_index = np.nan_to_num(per_index)
        # A head is many rows of one tensor; a unit's score is the mean of its rows'.
        member = next(m for m in group.members if m.tensor == tensor and m.dim == 0)
        own = member.unit_of >= 0
        sums, counts = np.zeros(group.units), np.zeros(group.units)
        np.add.at(sums, member.unit_of[own], per_index[own])
        np.add.at(counts, member.unit_of[own], 1)
        scores[group.name] = sums / counts
    return scores


def _on_the_task(contest: Contest) -> torch.nn.Module:
    """The whole backbone with a classifier for the task, where tuning would start."""
    network = replace(contest, cut=None).network(Mask.full(contest.structure))
    found = fit(
        network,
        contest.backbone,
        contest.task.train,
        len(contest.task.classes),
        contest.generator,
        contest.settings.fit_images,
    )
    start_from_means(network, contest.backbone, found)
    network.zero_grad(set_to_none=True)
    return network


def scratch(contest: Contest) -> Adapted:
    """The L1 mask's network from random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(contest.seed)
        fresh = timm.create_model(
            contest.backbone.model,
            num_classes=contest.backbone.num_classes,
            **contest.backbone.arguments,
        ).state_dict()
    return replace(contest, weights=fresh, cut=None).adapt(l1_mask(contest))


def dense(contest: Contest) -> Adapted:
    """The whole backbone, tuned: what a device without a budget would have."""
    return whole(contest, contest.backbone, contest.weights, contest.structure)


def whole(contest: Contest, backbone: Backbone, weights: Weights, structure: Structure) -> Adapted:
    """Another backbone, whole, tuned in the contest's iterations: a small network off the shelf."""
    mask = Mask.full(structure)
    other = replace(contest, backbone=backbone, weights=weights, structure=structure, cut=None)
    return other.adapt(mask)


def linear_probe(contest: Contest) -> Adapted:
    """The whole backbone with a classifier fitted to the task, and nothing tuned."""
    mask = Mask.full(contest.structure)
    network = replace(contest, cut=None).network(mask)
    task = contest.task
    fit(
        network, contest.backbone, task.train, len(task.classes), contest.generator,
        contest.settings.fit_images,
    )  # fmt: skip
    right = accuracy(network, task.evaluation)
    return Adapted(Pruned(network, mask, contest.importance), {0: right}, {})


def iterative(rounds: int) -> Adapt:
    """Conventional iterative pruning of the whole backbone on the device, in the contest's iterations."""

    def prune(contest: Contest) -> Adapted:
        return replace(contest, cut=None).adapt(
            Mask.full(contest.structure),
            target=contest.counts,
            pruning=PruningSettings(rounds=rounds),
        )

    return prune


MASKS: dict[str, Choose] = {
    "random": random_mask,
    "L1": l1_mask,
    "L2": l2_mask,
    "Taylor": taylor_mask,
    "SNIP": snip_mask,
    "Torch-Pruning magnitude": torch_pruning_mask("GroupMagnitudeImportance"),
    "Torch-Pruning Taylor": torch_pruning_mask("GroupTaylorImportance"),
}
"""Name in tables and figures -> the criterion; those that vote are the server's own."""

NETWORKS: dict[str, Adapt] = {
    "scratch": scratch,
    "dense": dense,
    "linear probe": linear_probe,
    "iterative": iterative(rounds=15),
}
"""Name -> a way that is more than a mask."""


def alternative(name: str, contest: Contest) -> Adapted:
    """What a device comes to in a way that needs no library."""
    if name in NETWORKS:
        return NETWORKS[name](contest)
    return contest.adapt(MASKS[name](contest))
