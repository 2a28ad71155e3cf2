"""Drawn votes: masks as devices will be assigned, of every size, from those who vote."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from coordinated_tasks import ask
from random_tasks import random_mask

from common.backbone import weights_digest
from common.budget import Budget
from common.errors import BudgetError, InputError
from common.importance import magnitude
from common.mask import Mask
from server.budget import allot
from server.coordinator import Coordinator
from server.healing.drawn_votes import UNVOTED_EVERY, drawn_votes
from server.library import Library
from server.settings import KeepRatios, VotingSettings
from server.voting import Ballot, elect, explored_units, ranks

PLAIN = VotingSettings(neighbours=3, explore=0, prior=0)
RATIOS = KeepRatios(0.1, 0.5)


@pytest.fixture(scope="module")
def importance(weights, structure):
    return magnitude(weights, structure)


@pytest.fixture(scope="module")
def entries(structure) -> list[Mask]:
    return [random_mask(structure, np.random.default_rng(seed), keep_ratio=0.3) for seed in range(5)]


@pytest.fixture
def draw(structure, importance, entries):
    def draw(count, ratios=RATIOS, settings=PLAIN, seed=0, masks=entries) -> list[Mask]:
        drawn = drawn_votes(structure, masks, importance, ratios, settings, seed)
        return list(islice(drawn, count))

    return draw


def counts_of(structure, ratio):
    return allot(structure, Budget(keep_ratio=ratio), 1)


def test_sizes_are_eight_evenly_spaced_by_their_logarithms_and_all_occur(draw, structure):
    ratios = [0.1 * 5 ** (step / 7) for step in range(8)]
    expected = {counts_of(structure, min(ratio, 0.5)) for ratio in ratios}
    assert {mask.counts for mask in draw(200)} == expected


def test_every_fourth_mask_is_what_an_empty_library_assigns(draw, structure, importance):
    for number, mask in enumerate(draw(40), start=1):
        unvoted = mask == Mask.keep_top(structure, importance, mask.counts)
        assert unvoted == (number % UNVOTED_EVERY == 0)


def test_in_an_empty_library_importance_elects_alone(draw, structure, importance):
    for mask in draw(10, masks=[]):
        assert mask == Mask.keep_top(structure, importance, mask.counts)


def test_where_all_are_neighbours_the_mask_is_what_all_of_them_elect(
    draw, structure, importance, entries
):
    ballots = [Ballot(entry, 1.0) for entry in entries]
    for mask in draw(3, settings=replace(PLAIN, neighbours=10)):
        assert mask == elect(structure, ballots, "smsp", mask.counts, importance).mask


def test_who_votes_is_drawn_by_lot(draw, structure, entries):
    """Of one neighbour alone, a mask of no more units than its own is a part of it."""
    small = KeepRatios(0.15, 0.15)
    masks = [m for n, m in enumerate(draw(80, small, replace(PLAIN, neighbours=1)), 1) if n % 4]
    voted = [[mask.within(entry) for entry in entries].index(True) for mask in masks]
    assert {*voted} == {*range(len(entries))}


def test_units_are_given_up_for_runners_up_where_somebody_votes(draw, structure):
    explored = draw(12, settings=replace(PLAIN, explore=0.2))
    for number, (mask, plain) in enumerate(zip(explored, draw(12), strict=True), start=1):
        given_up = tuple(int((plain[name] & ~mask[name]).sum()) for name in mask)
        expected = explored_units(structure, mask.counts, 0.2)
        assert mask.counts == plain.counts
        assert given_up == (expected if number % UNVOTED_EVERY else (0,) * len(expected))


def test_where_importance_outweighs_all_votes_nothing_is_given_up(structure, importance, entries):
    settings = VotingSettings(explore=0.2, prior=10_000.0)
    drawn = drawn_votes(structure, entries, ranks(importance), RATIOS, settings, seed=0)
    for mask in islice(drawn, 12):
        assert mask == Mask.keep_top(structure, importance, mask.counts)


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5])
def test_what_is_healed_for_without_votes_is_what_an_empty_library_assigns(
    draw, path, offer, weights, ratio
):
    settings = VotingSettings(explore=0.2)
    with Library.create(path, offer, weights_digest(weights)) as library:
        coordinator = Coordinator(library, weights, settings)
        assigned = coordinator.choose(ask(offer, 1, Budget(keep_ratio=ratio))).mask
    one_size = KeepRatios(ratio, ratio)
    assert draw(2, one_size, settings, masks=[]) == [assigned, assigned]
    assert draw(UNVOTED_EVERY, one_size, settings)[-1] == assigned


def test_the_same_seed_draws_the_same(draw):
    exploring = replace(PLAIN, explore=0.1)
    assert draw(10, settings=exploring, seed=4) == draw(10, settings=exploring, seed=4)
    assert draw(10, settings=exploring, seed=4) != draw(10, settings=exploring, seed=5)


def test_no_mask_is_smaller_than_the_smallest_sub_network(draw, structure):
    least = sum(structure.smallest) / structure.units
    assert {mask.counts for mask in draw(60, KeepRatios(least / 100, least))} == {structure.smallest}
    with pytest.raises(BudgetError, match="ask for at least"):
        draw(1, KeepRatios(least / 100, least / 2))


@pytest.mark.parametrize("wrong", [(0, 0.3), (0.3, 0.1), (0.1, 1.1), (float("nan"), 0.5)])
def test_keep_ratios_out_of_range_or_order_are_refused(wrong):
    with pytest.raises(InputError, match="the lower one first"):
        KeepRatios(*wrong)
