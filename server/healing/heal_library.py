"""Healing for a library: the backbone's weights are taught to bear the masks that it votes for."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from common.backbone import Weights
from common.budget import Budget
from common.errors import InputError
from common.importance import magnitude
from common.mask import Mask
from server.budget import allot
from server.healing.drawn_votes import drawn_votes
from server.healing.heal import PublicImages, Watch, distance, heal
from server.healing.store import HealedBackbone, HealedStore
from server.library import Library
from server.settings import HEAL_VOTING, HealingSettings, KeepRatios, VotingSettings
from server.voting import ranks


@dataclass(frozen=True)
class Healing:
    """What healing has come to: the backbone, and the `distance` of a sub-network's features from the
    whole backbone's, before and after (see `heal.distance`).

    The sub-network keeps the share `keep_ratio` of the units, the most important ones.
    """

    healed: HealedBackbone
    keep_ratio: float
    distance_before: float
    distance_after: float


def store_of(library: Library) -> HealedStore:
    """The library's healed store: birds.db.healed beside birds.db."""
    directory = library.path.with_name(f"{library.path.name}.healed")
    offer = library.offer
    return HealedStore(directory, offer.backbone, library.weights_digest, offer.structure)


def heal_library(
    library: Library,
    weights: Weights,
    public: PublicImages,
    store: HealedStore,
    ratios: KeepRatios,
    settings: HealingSettings,
    *,
    voting: VotingSettings = HEAL_VOTING,
    seed: int = 0,
    watch: Watch | None = None,
) -> Healing:
    """Heal the backbone's weights through masks such as the library's entries vote for, into the store.

    Removed entries do not vote; in an empty library the backbone's importance elects. `weights` are the
    backbone's, on the device that is to compute. Raises InputError where there is no time for a single
    iteration, BudgetError where no sub-network is as small as asked for; else as `put_backbone`.
    """
    backbone, structure = library.offer.backbone, library.offer.structure
    importance = ranks(magnitude(weights, structure))
    entries = [entry.mask for entry in library.export()]
    masks = drawn_votes(structure, entries, importance, ratios, voting, seed)
    done = 0

    def count(iteration: int, iterations: int) -> None:
        nonlocal done
        done = iteration
        if watch is not None:
            watch(iteration, iterations)

    began = time.monotonic()
    generator = torch.Generator().manual_seed(seed)
    healed = heal(backbone, weights, masks, public, settings, generator, watch=count)
    if done == 0:
        raise InputError(
            f"there was no time for a single iteration in {settings.seconds:g} seconds, and nothing is "
            "healed; give more"
        )
    made = HealedBackbone(
        {n: t.cpu() for n, t in backbone.without_classifiers(healed).items()},
        ratios.low,
        ratios.high,
        voting.prior,
        iterations=done,
        images=len(public.images),
        entries=len(entries),
        seconds=round(time.monotonic() - began, 1),
    )
    store.put_backbone(made)  # before it is judged: whatever goes wrong there, it is kept
    keep_ratio = (ratios.low * ratios.high) ** 0.5
    keep_ratio = max(keep_ratio, structure.share(structure.smallest))
    judge = Mask.keep_top(structure, importance, allot(structure, Budget(keep_ratio=keep_ratio), 1))
    return Healing(
        made,
        judge.density,
        distance(backbone, weights, judge, public),
        distance(backbone, healed, judge, public),
    )
