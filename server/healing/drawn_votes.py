"""Drawn votes: masks such as devices will be assigned, before any of them asks: what to heal through."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from common.budget import Budget, Counts
from common.mask import Mask, Scores
from common.structure import Structure
from server.budget import allot
from server.settings import KeepRatios, VotingSettings
from server.voting import Ballot, elect, explored_units, with_runners_up

SIZES = 8
"""How many sizes of masks there are: those between share most of their units with one of them."""
UNVOTED_EVERY = 4
"""Every so manieth mask is the backbone's importance's own: what an empty library assigns."""
LARGEST_SEED = 2**63


def drawn_votes(
    structure: Structure,
    masks: Sequence[Mask],
    importance: Scores,
    ratios: KeepRatios,
    settings: VotingSettings,
    seed: int,
) -> Iterator[Mask]:
    """Endless masks that keep `ratios` of the units, each a vote of some of a library's `masks`.

    As the coordinator votes, but for the neighbours, who are drawn by lot and all weigh alike; with no
    masks, and every fourth time, the backbone's importance elects alone, as in an empty library. The
    keep ratio of each is one of a few, evenly spaced by their logarithms; none is below the smallest
    sub-network's. Raises BudgetError where not even the highest allows a unit for every group.
    """
    smallest = structure.share(structure.smallest)
    low = min(max(ratios.low, smallest), ratios.high)
    counts = [
        allot(structure, Budget(keep_ratio=min(1.0, float(ratio))), 1)
        for ratio in np.geomspace(low, ratios.high, SIZES)
    ]
    return _draw(structure, masks, importance, counts, settings, np.random.default_rng(seed))


def _draw(
    structure: Structure,
    masks: Sequence[Mask],
    importance: Scores,
    counts: Sequence[Counts],
    settings: VotingSettings,
    lot: np.random.Generator,
) -> Iterator[Mask]:
    number = 0
    while True:
        number += 1
        held = counts[int(lot.integers(len(counts)))]
        voters: Sequence[int] = ()
        if number % UNVOTED_EVERY and masks:
            voters = lot.choice(len(masks), min(settings.neighbours, len(masks)), replace=False).tolist()
        ballots = [Ballot(masks[voter], 1.0) for voter in voters]
        elected = elect(structure, ballots, "smsp", held, importance, settings.prior)
        mask, draw = elected.mask, int(lot.integers(LARGEST_SEED))
        if elected.origin == "vote":
            explored = explored_units(structure, held, settings.explore)
            mask = with_runners_up(mask, elected.scores, explored, draw, tie_break=importance)
        yield mask
