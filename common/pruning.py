"""Iterative pruning: rounds of fine-tuning, each of which drops the units that matter least."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from common.budget import Counts
from common.errors import InputError
from common.mask import Mask, Scores
from common.tuning_settings import FineTuneSettings, PruningSettings


@dataclass(frozen=True)
class Pruned:
    """A network cut to its task: what it is, the mask that says so, and how its units rank."""

    network: nn.Module
    mask: Mask
    scores: Scores


@dataclass(frozen=True)
class Stage:
    """Iterations at one size, and the units that are kept after them.

    `final_rate` is where their learning rate ends, as a share of the highest one. `counts` are units per
    group, None where the network stays as it is.
    """

    iterations: int
    final_rate: float
    counts: Counts | None = None


def reachable(mask: Mask, target: Sequence[int] | None) -> Counts | None:
    """Units per group to end with: the target, but no more than the mask holds; None if none is cut."""
    if target is None:
        return None
    counts = tuple(min(want, held) for want, held in zip(target, mask.counts, strict=True))
    return None if counts == mask.counts else counts


def stages_of(
    settings: FineTuneSettings,
    mask: Mask,
    target: Sequence[int] | None = None,
    pruning: PruningSettings | None = None,
) -> list[Stage]:
    """The stages of tuning what `mask` left, down to `target` units per group.

    Each round of pruning tunes for its share of the iterations and cuts the network by an equal factor;
    what is left of the iterations settles it. One stage leaves the network as it is where there is no
    `pruning`, no iteration, or no unit to cut. A target above what is held keeps what is held. InputError
    where nothing of the backbone can be cut.
    """
    whole = [Stage(settings.iterations, settings.final_rate)]
    if pruning is None or target is None:
        return whole
    if mask.structure.units == 0:
        raise InputError("nothing of this backbone can be cut; choose other kinds of groups")
    start, final = mask.counts, reachable(mask, target)
    if final is None or settings.iterations == 0:
        return whole
    pruned_at = max(1, round(settings.iterations * (1 - pruning.settle)))
    rounds = min(pruning.rounds, pruned_at)
    stages, planned = [], 0
    for number in range(1, rounds + 1):
        share, until = number / rounds, round(pruned_at * number / rounds)
        counts = tuple(
            want if number == rounds else max(want, round(n * (want / n) ** share))
            for n, want in zip(start, final, strict=True)
        )
        stages.append(Stage(until - planned, 1.0, counts))
        planned = until
    if planned < settings.iterations:
        stages.append(Stage(settings.iterations - planned, settings.final_rate))
    return stages
