"""Iterative pruning: rounds of fine-tuning, each of which drops the units that matter least."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from common.backbone import Backbone
from common.errors import InputError
from common.fine_tune import FineTuneSettings, fine_tune
from common.importance import Taylor
from common.mask import Mask, Scores
from common.rebuild import rebuild
from common.subnetwork import cut
from common.task_data import LabelledImages


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
    after_iteration: Callable[[int, nn.Module], None] | None = None,
) -> Pruned:
    """Prune a network, as `mask` left it, down to `target` units per group, tuning as it goes.

    Each round tunes for its share of the iterations, ranks units by first-order Taylor on the
    batches it saw, and cuts the network by an equal factor. Units of every group never grow; a
    target above what is held keeps what is held. `after_iteration` gets iterations done and the network.
    """
    if mask.structure.units == 0:
        raise InputError("nothing of this backbone can be cut; choose other kinds of groups")
    target = [min(want, held) for want, held in zip(target, mask.counts, strict=True)]
    if settings.iterations < 1:
        raise InputError(f"{settings.iterations} iterations rank no unit; pruning takes at least 1")
    start = mask.counts
    pruned_at = max(1, round(settings.iterations * (1 - pruning.settle)))
    rounds = min(pruning.rounds, pruned_at)
    done = 0
    for number in range(1, rounds + 1):
        until = round(pruned_at * number / rounds)
        taylor = Taylor(network, mask)
        part = replace(settings, iterations=until - done, final_rate=1.0)
        fine_tune(
            network,
            images,
            part,
            generator,
            after_backward=taylor.observe,
            after_iteration=_relay(after_iteration, done, network),
        )
        done += part.iterations
        share = number / rounds
        counts = [
            want if number == rounds else max(want, round(n * (want / n) ** share))
            for n, want in zip(start, target, strict=True)
        ]
        scores = taylor.scores()
        smaller = Mask.keep_top(mask.structure, scores, counts)
        network = rebuild(backbone, cut(network.state_dict(), smaller, within=mask))
        mask = smaller
    if done < settings.iterations:
        taylor = Taylor(network, mask)
        fine_tune(
            network,
            images,
            replace(settings, iterations=settings.iterations - done),
            generator,
            after_backward=taylor.observe,
            after_iteration=_relay(after_iteration, done, network),
        )
        scores = taylor.scores()
    return Pruned(network, mask, scores)


def _relay(
    after_iteration: Callable[[int, nn.Module], None] | None, done: int, network: nn.Module
) -> Callable[[int], None] | None:
    if after_iteration is None:
        return None
    return lambda count: after_iteration(done + count, network)
