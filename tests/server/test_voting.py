"""Voting: the score masks of both papers, worked out by hand, and what a vote never does."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from common.errors import InputError, MismatchError
from common.exchange import METHODS
from common.mask import Mask
from common.structure import Group, Structure
from common.structure.cost import Cost
from server.voting import Ballot, elect, mvp_vote, ranks, smsp_score, with_runners_up

NOTHING = Cost((), ())


def structure_of(*sizes: int) -> Structure:
    """Groups a, b, ... of so many units, of no network."""
    groups = tuple(
        Group(name, size, "internal", True, ()) for name, size in zip("abcdef", sizes, strict=False)
    )
    return Structure({"model": "none"}, groups, 2, NOTHING, NOTHING, NOTHING)


FOUR_AND_TWO = structure_of(4, 2)
TEN = structure_of(10)
SINGLE = structure_of(1, 5)
FLAT = {"a": np.zeros(4), "b": np.zeros(2)}


def mask_of(a: str, b: str = "10") -> Mask:
    """A mask of FOUR_AND_TWO, written as its bits."""
    rows = {name: np.array([bit == "1" for bit in bits]) for name, bits in (("a", a), ("b", b))}
    return Mask.of(FOUR_AND_TWO, rows)


def bits_of(mask: Mask) -> str:
    return "".join("01"[int(kept)] for kept in mask.kept)


def ballots_of(kept: np.ndarray, similarities, structure: Structure = TEN) -> list[Ballot]:
    return [Ballot(Mask(structure, row), s) for row, s in zip(kept, similarities, strict=True)]


def kept_rows(voters: int) -> st.SearchStrategy[np.ndarray]:
    """Masks of TEN, bool (voters, 10): numbers from 1 on, as bits, so that each keeps a unit."""
    numbers = st.lists(st.integers(1, 1023), min_size=voters, max_size=voters)
    return numbers.map(lambda drawn: (np.array(drawn)[:, None] >> np.arange(10) & 1).astype(bool))


voters = st.integers(1, 12)
hundredths = st.integers(0, 100).map(lambda n: n / 100)
importances = arrays(np.float64, 10, elements=st.integers(0, 5).map(float)).map(lambda row: {"a": row})


# The score masks of the papers


def test_mvp_counts_one_vote_a_task_however_similar_it_is():
    ballots = [
        Ballot(mask_of("1100", "10"), 0.9),
        Ballot(mask_of("1010", "11"), 0.1),
        Ballot(mask_of("1001", "10"), 0.0),
    ]
    votes = mvp_vote(ballots)
    assert votes["a"].tolist() == [3, 1, 1, 1]
    assert votes["b"].tolist() == [3, 1]


def test_smsp_weighs_each_mask_by_its_share_of_all_similarity():
    """Similarities of 0.8, 0.4 and 0.4 are shares of 1/2, 1/4 and 1/4."""
    ballots = [
        Ballot(mask_of("1100", "10"), 0.8),
        Ballot(mask_of("1010", "11"), 0.4),
        Ballot(mask_of("0011", "01"), 0.4),
    ]
    scores = smsp_score(ballots)
    assert scores["a"].tolist() == [0.75, 0.5, 0.5, 0.25]
    assert scores["b"].tolist() == [0.75, 0.5]


def test_smsp_elects_a_near_tasks_units_where_mvp_elects_those_of_two_far_ones():
    near, far = mask_of("1000"), mask_of("0100")
    ballots = [Ballot(near, 0.9), Ballot(far, 0.2), Ballot(far, 0.2)]
    assert bits_of(elect(FOUR_AND_TWO, ballots, "smsp", (1, 1), FLAT).mask)[:4] == "1000"
    assert bits_of(elect(FOUR_AND_TWO, ballots, "mvp", (1, 1), FLAT).mask)[:4] == "0100"


def test_where_no_neighbour_is_similar_at_all_smsp_weighs_all_alike():
    scores = smsp_score([Ballot(mask_of("1100"), 0.0), Ballot(mask_of("1010"), 0.0)])
    assert scores["a"].tolist() == [1, 0.5, 0.5, 0]


@pytest.mark.parametrize("method", METHODS)
def test_every_group_keeps_its_own_best_whatever_the_other_groups_score(method):
    ballots = [Ballot(mask_of("1111", "01"), 1.0), Ballot(mask_of("0110", "01"), 1.0)]
    elected = elect(FOUR_AND_TWO, ballots, method, (2, 1), FLAT)
    assert bits_of(elected.mask) == "0110" + "01"
    assert elected.origin == "vote"


# Ties, one neighbour, none


@pytest.mark.parametrize("method", METHODS)
def test_ties_go_to_the_backbones_importance_and_not_to_index_order(method):
    """Unit 0 has every vote; units 1, 2 and 3 have one each and one place is left."""
    ballots = [Ballot(mask_of(bits), 0.5) for bits in ("1100", "1010", "1001")]
    for favourite in (1, 2, 3):
        importance = {"a": np.eye(4)[favourite], "b": np.zeros(2)}
        elected = elect(FOUR_AND_TWO, ballots, method, (2, 1), importance).mask
        assert np.flatnonzero(elected["a"]).tolist() == [0, favourite]


def test_scores_that_are_equal_on_paper_are_tied_though_0_1_plus_0_2_is_not_0_3():
    ballots = [
        Ballot(mask_of("0101"), 0.1),
        Ballot(mask_of("0101"), 0.2),
        Ballot(mask_of("0011"), 0.3),
    ]
    for favourite in (1, 2):
        importance = {"a": np.eye(4)[favourite], "b": np.zeros(2)}
        elected = elect(FOUR_AND_TWO, ballots, "smsp", (2, 1), importance).mask
        assert np.flatnonzero(elected["a"]).tolist() == [favourite, 3]


def test_ranks_are_shares_of_their_group_and_equals_share_their_mean():
    found = ranks({"a": np.array([5.0, 1.0, 5.0, 7.0]), "b": np.array([2.0, 2.0])})
    assert found["a"].tolist() == [2.5 / 4, 1 / 4, 2.5 / 4, 1.0]
    assert found["b"].tolist() == [0.75, 0.75]


@pytest.mark.parametrize("method", METHODS)
def test_a_prior_outweighs_a_minority_of_the_votes_and_no_majority(method):
    """Votes of 1, 3, 1 and 0 of four; ranks of 1/4, 2/4, 3/4 and 1."""
    ballots = [Ballot(mask_of(bits), 0.5) for bits in ("1000", "0100", "0110", "0100")]
    importance = {"a": np.array([0.25, 0.5, 0.75, 1.0]), "b": np.array([1.0, 0.5])}
    plain, weighed, heavy = (
        elect(FOUR_AND_TWO, ballots, method, (2, 1), importance, prior) for prior in (0.0, 0.5, 4.0)
    )
    assert bits_of(plain.mask) == "0110" + "10"  # of units 0 and 2, one vote each, the more important
    # 0.25 + 0.125, 0.75 + 0.25, 0.25 + 0.375, 0 + 0.5
    assert weighed.scores["a"].tolist() == pytest.approx([0.375, 1.0, 0.625, 0.5])
    assert bits_of(weighed.mask) == "0110" + "10"
    assert bits_of(heavy.mask) == "0011" + "10"


@given(kept_rows(5), st.permutations(range(10)), st.integers(1, 9))
def test_an_endless_prior_elects_as_an_empty_library_does(kept, order, count):
    importance = ranks({"a": np.array(order, dtype=np.float64)})
    alone = elect(TEN, [], "smsp", (count,), importance)
    voted = elect(TEN, ballots_of(kept, [0.5] * 5), "smsp", (count,), importance, 1e6)
    assert voted.mask == alone.mask


@pytest.mark.parametrize("method", METHODS)
def test_in_an_empty_library_importance_elects_and_the_outcome_says_so(method):
    importance = {"a": np.array([1.0, 4.0, 2.0, 3.0]), "b": np.array([0.0, 1.0])}
    elected = elect(FOUR_AND_TWO, [], method, (2, 1), importance)
    assert bits_of(elected.mask) == "0101" + "01"
    assert elected.origin == "importance"


@settings(deadline=None)
@given(kept_rows(1), hundredths, importances, st.sampled_from(METHODS))
def test_one_neighbour_elects_its_own_mask_at_its_own_counts(kept, similarity, importance, method):
    ballots = ballots_of(kept, [similarity])
    mask = ballots[0].mask
    assert elect(TEN, ballots, method, mask.counts, importance).mask == mask


@settings(deadline=None)
@given(voters.flatmap(kept_rows), hundredths, st.integers(1, 10), importances)
def test_equally_similar_neighbours_elect_the_same_by_smsp_as_by_mvp(kept, similarity, count, importance):
    ballots = ballots_of(kept, [similarity] * len(kept))
    by_mvp, by_smsp = (elect(TEN, ballots, method, (count,), importance).mask for method in METHODS)
    assert by_mvp == by_smsp


@settings(deadline=None)
@given(voters.flatmap(kept_rows), st.data())
def test_the_order_of_the_neighbours_changes_nothing(kept, data):
    similarities = data.draw(st.lists(hundredths, min_size=len(kept), max_size=len(kept)))
    ballots = ballots_of(kept, similarities)
    shuffled = data.draw(st.permutations(ballots))
    for score in (mvp_vote, smsp_score):
        assert score(ballots)["a"].tolist() == score(shuffled)["a"].tolist()


# What a few bad voters can do


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_bad_voters_move_no_mvp_unit_whose_honest_margin_to_the_cut_exceeds_their_number(data):
    """Whatever f masks say: a unit more than f honest votes from the cut line stays where it is."""
    honest = data.draw(st.integers(1, 9).flatmap(kept_rows), "honest")
    bad = data.draw(st.integers(1, 4).flatmap(kept_rows), "bad")
    importance = data.draw(importances, "importance")
    count = data.draw(st.integers(1, 9), "count")
    votes = honest.sum(0)
    in_order = np.sort(votes)[::-1]
    last_in, first_out = in_order[count - 1], in_order[count]
    assume(in_order[0] > first_out + len(bad) or in_order[-1] < last_in - len(bad))

    elected = elect(TEN, ballots_of(np.vstack([honest, bad]), [0.5] * (len(honest) + len(bad))),
                    "mvp", (count,), importance).mask["a"]  # fmt: skip
    assert elected[votes > first_out + len(bad)].all()
    assert not elected[votes < last_in - len(bad)].any()


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_bad_voters_move_no_smsp_unit_whose_honest_margin_exceeds_their_weight(data):
    """The same with weights: what an attacker can shift is its share of all similarity."""
    rows = data.draw(st.integers(2, 9).flatmap(kept_rows), "rows")
    similarities = data.draw(st.lists(hundredths, min_size=len(rows), max_size=len(rows)), "similarities")
    assume(sum(similarities) > 0)
    number = data.draw(st.integers(1, len(rows) - 1), "bad")
    count = data.draw(st.integers(1, 9), "count")
    weights = np.array(similarities) / sum(similarities)
    scores = weights[number:] @ rows[number:]
    margin = weights[:number].sum() + 1e-9
    in_order = np.sort(scores)[::-1]

    flat = {"a": np.zeros(10)}
    elected = elect(TEN, ballots_of(rows, similarities), "smsp", (count,), flat).mask["a"]
    assert elected[scores > in_order[count] + margin].all()
    assert not elected[scores < in_order[count - 1] - margin].any()


# What is refused


@pytest.mark.parametrize("similarity", [float("nan"), -0.01, 1.01, float("inf")])
def test_a_similarity_outside_0_to_1_is_refused(similarity):
    with pytest.raises(InputError, match="lies in"):
        Ballot(mask_of("1000"), similarity)


@pytest.mark.parametrize("score", [mvp_vote, smsp_score])
def test_masks_of_different_structures_do_not_vote_together(score):
    other = Mask.full(structure_of(4, 2, 1))
    with pytest.raises(MismatchError, match="2 structures"):
        score([Ballot(mask_of("1000"), 0.5), Ballot(other, 0.5)])


@pytest.mark.parametrize("method", METHODS)
def test_masks_of_another_structure_do_not_vote_on_this_one(method):
    """Though their groups have the same names and sizes."""
    twin = Structure({"model": "twin"}, FOUR_AND_TWO.groups, 2, NOTHING, NOTHING, NOTHING)
    with pytest.raises(MismatchError, match=twin.digest[:12]):
        elect(twin, [Ballot(mask_of("1000"), 0.5)], method, (1, 1), FLAT)


@pytest.mark.parametrize("score", [mvp_vote, smsp_score])
def test_nobody_is_no_vote(score):
    with pytest.raises(InputError, match="nobody votes"):
        score([])


# Runners-up


elections = arrays(np.float64, 10, elements=hundredths).map(lambda row: {"a": row})


@settings(deadline=None)
@given(elections, importances, st.integers(1, 10), st.integers(0, 10), st.integers(0, 2**128 - 1))
def test_runners_up_replace_the_last_of_the_vote_and_never_the_best(
    scores, importance, count, explored, seed
):
    """As many units as before; the given up are those that the next smaller vote does not elect."""
    elected = Mask.keep_top(TEN, scores, (count,), tie_break=importance)
    explored = min(explored, count - 1)
    exploring = with_runners_up(elected, scores, (explored,), seed, importance)
    assert exploring.counts == elected.counts
    given_up = min(explored, 10 - count)
    assert int((elected.kept & ~exploring.kept).sum()) == given_up
    best = Mask.keep_top(TEN, scores, (count - given_up,), tie_break=importance)
    assert best.within(exploring)


@settings(deadline=None)
@given(elections, st.integers(1, 10), st.integers(0, 2**128 - 1))
def test_exploring_nothing_changes_nothing(scores, count, seed):
    elected = Mask.keep_top(TEN, scores, (count,))
    assert with_runners_up(elected, scores, (0,), seed) == elected


def test_a_seed_draws_the_same_runners_up_and_other_seeds_draw_others():
    scores = {"a": np.arange(10) / 10}
    elected = Mask.keep_top(TEN, scores, (5,))
    drawn = [with_runners_up(elected, scores, (2,), seed) for seed in (1, 1, *range(2, 12))]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 3


def test_a_runner_up_with_votes_is_drawn_before_one_without_and_either_is_drawn_at_times():
    """Beside unit 0 one place; unit 1 has half of the votes, the eight others have none."""
    scores = {"a": np.array([1, 0.5, 0, 0, 0, 0, 0, 0, 0, 0.6])}
    elected = Mask.keep_top(TEN, scores, (2,))
    drawn = [with_runners_up(elected, scores, (1,), seed)["a"][1:9] for seed in range(400)]
    often = np.sum(drawn, axis=0)
    assert often[0] > 3 * often[1:].max()
    assert often[1:].min() > 0


def test_a_group_without_others_and_a_group_of_one_give_up_nothing():
    full = Mask.full(SINGLE)
    scores = {"a": np.zeros(1), "b": np.zeros(5)}
    assert with_runners_up(full, scores, (1, 5), seed=0) == full


def test_a_group_never_gives_up_its_last_unit():
    scores = {"a": np.arange(10.0)}
    elected = Mask.keep_top(TEN, scores, (1,))
    assert with_runners_up(elected, scores, (1,), seed=0) == elected
