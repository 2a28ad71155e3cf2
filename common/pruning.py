"""Iterative pruning: rounds of fine-tuning, each of which drops the units that matter least."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from common.backbone import Backbone
from common.deadline import Deadline
from common.errors import InputError
from common.fine_tune import FineTuneSettings, Tuning, fine_tune, only_tuned
from common.images import LabelledImages
from common.importance import Taylor, rank
from common.mask import Mask, Scores
from common.rebuild import rebuild
from common.subnetwork import cut


@dataclass(frozen=True)
class PruningSettings:
    """How units are dropped: in so many rounds, the last of them `settle` of all iterations early.

    What is left of the iterations tunes the network at its final size.
    """

    rounds: int = 3
    settle: float = 0.4

    def __post_init__(self) -> None:
        if self.rounds < 1 or not 0 <= self.settle < 1:
            raise InputError(
                f"{self.rounds} rounds and a settling share of {self.settle}; needed are at least "
                "one round and a share in [0, 1)"
            )


@dataclass(frozen=True)
class Pruned:
    """A network cut to its task: what it is, the mask that says so, and how its units rank."""

    network: nn.Module
    mask: Mask
    scores: Scores


def tune_and_rank(
    network: nn.Module,
    backbone: Backbone,
    mask: Mask,
    images: LabelledImages,
    settings: FineTuneSettings,
    generator: torch.Generator,
    *,
    deadline: Deadline | None = None,
    after_iteration: Callable[[int], None] | None = None,
) -> tuple[Tuning, Scores]:
    """Tune a network in place, and rank the units that it holds by first-order Taylor.

    Ranked by the batches that it was tuned on, whose gradients are there anyway. Where only the head is
    tuned there are none of the weights that read units: a few batches more are for them, without a step.
    """
    taylor = Taylor(network, mask)
    with only_tuned(network, backbone, settings.tuned):
        tuning = fine_tune(
            network,
            images,
            settings,
            generator,
            deadline=deadline,
            after_backward=taylor.observe if settings.tuned == "all" else None,
            after_iteration=after_iteration,
        )
    if settings.tuned == "all":
        return tuning, taylor.scores()
    scores = rank(
        network,
        mask,
        images,
        settings.batch_size,
        generator,
        micro_batch=settings.micro_batch,
        precision=settings.precision,
    )
    return tuning, scores


def prune_iteratively(
    network: nn.Module,
    backbone: Backbone,
    mask: Mask,
    target: Sequence[int],
    images: LabelledImages,
    settings: FineTuneSettings,
    pruning: PruningSettings,
    generator: torch.Generator,
    *,
    deadline: Deadline | None = None,
    after_iteration: Callable[[int, nn.Module], None] | None = None,
) -> Pruned:
    """Prune a network, as `mask` left it, down to `target` units per group, tuning as it goes.

    Each round tunes for its share of the iterations, ranks units by first-order Taylor on the
    batches it saw, and cuts the network by an equal factor. Units of every group never grow; a
    target above what is held keeps what is held. A deadline is shared out as the iterations are; the
    target is reached in any case. `after_iteration` gets iterations done and the network.
    """
    if mask.structure.units == 0:
        raise InputError("nothing of this backbone can be cut; choose other kinds of groups")
    target = [min(want, held) for want, held in zip(target, mask.counts, strict=True)]
    if settings.iterations < 1:
        raise InputError(f"{settings.iterations} iterations rank no unit; pruning takes at least 1")
    start = mask.counts
    pruned_at = max(1, round(settings.iterations * (1 - pruning.settle)))
    rounds = min(pruning.rounds, pruned_at)
    done = planned = 0

    def tuned(part: FineTuneSettings) -> Scores:
        nonlocal done, planned
        share = part.iterations / (settings.iterations - planned)
        tuning, scores = tune_and_rank(
            network,
            backbone,
            mask,
            images,
            part,
            generator,
            deadline=None if deadline is None else deadline.part(share),
            after_iteration=_relay(after_iteration, done, network),
        )
        done, planned = done + tuning.iterations, planned + part.iterations
        return scores

    for number in range(1, rounds + 1):
        until = round(pruned_at * number / rounds)
        scores = tuned(replace(settings, iterations=until - planned, final_rate=1.0))
        share = number / rounds
        counts = [
            want if number == rounds else max(want, round(n * (want / n) ** share))
            for n, want in zip(start, target, strict=True)
        ]
        smaller = Mask.keep_top(mask.structure, scores, counts)
        network = rebuild(backbone, cut(network.state_dict(), smaller, within=mask))
        mask = smaller
    if planned < settings.iterations:
        scores = tuned(replace(settings, iterations=settings.iterations - planned))
    return Pruned(network, mask, scores)


def _relay(
    after_iteration: Callable[[int, nn.Module], None] | None, done: int, network: nn.Module
) -> Callable[[int], None] | None:
    if after_iteration is None:
        return None
    return lambda count: after_iteration(done + count, network)
