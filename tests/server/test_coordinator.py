"""The coordinator: what a device asks is voted on within its budget, and what it returns votes next."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from coordinated_tasks import CLASSES, SEEDS, answer_to, ask, both_methods, near, request_id, stock
from hypothesis import example, given, settings
from hypothesis import strategies as st
from random_tasks import random_mask

from common.backbone import weights_digest
from common.budget import Budget
from common.errors import BudgetError, InputError, MismatchError
from common.exchange import METHODS, Contribution, TaskDescription
from common.half_precision import in_half_precision
from common.importance import magnitude
from common.mask import Mask
from common.signature import TaskSignature
from common.subnetwork import SubNetwork
from server.budget import allot
from server.coordinator import Coordinator
from server.library import Library
from server.settings import VotingSettings


@pytest.fixture
def empty(path, offer, weights):
    with Library.create(path, offer, weights_digest(weights)) as library:
        yield library


@pytest.fixture
def library(empty, offer):
    """Of six tasks of the operator's."""
    stock(empty)
    return empty


@pytest.fixture
def coordinator(library, weights) -> Coordinator:
    return Coordinator(library, weights)


@pytest.fixture(scope="module")
def lasting(tmp_path_factory, offer, weights):
    """A coordinator of such a library for tests that ask much and change little."""
    path = tmp_path_factory.mktemp("lasting") / "library.db"
    with Library.create(path, offer, weights_digest(weights)) as library:
        stock(library)
        yield Coordinator(library, weights)


# One device after the other


def test_what_a_device_returns_votes_for_the_next_of_a_near_task(coordinator, offer):
    first = ask(offer, 1, Budget(keep_ratio=0.3))
    contribution = answer_to(coordinator.assign(first))
    before = len(coordinator)
    receipt = coordinator.record(contribution)
    assert (receipt.entry, receipt.entries) == (first.request_id, before + 1)
    assert len(coordinator) == before + 1

    second = TaskDescription(request_id(2), near(offer, first.signature), Budget(keep_ratio=0.3))
    nearest = coordinator.assign(second).neighbours[0]
    assert nearest.entry == receipt.entry
    assert nearest.similarity > 0.9


def test_a_single_neighbour_hands_its_own_mask_on(library, offer, weights):
    """With one neighbour, nothing explored and the same budget, the vote is what was returned."""
    coordinator = Coordinator(library, weights, VotingSettings(neighbours=1, explore=0))
    first = ask(offer, 1, Budget(keep_ratio=0.3, headroom=2), "mvp")
    contribution = answer_to(coordinator.assign(first))
    coordinator.record(contribution)
    for number, method in enumerate(METHODS, start=2):
        task = TaskDescription(request_id(number), first.signature, Budget(keep_ratio=0.3), method)
        assert coordinator.assign(task).subnetwork.mask == contribution.mask


@both_methods
def test_neighbours_are_the_nearest_with_the_nearest_first_and_no_more_than_set(
    library, offer, weights, method
):
    coordinator = Coordinator(library, weights, VotingSettings(neighbours=3))
    assignment = coordinator.assign(ask(offer, 1, Budget(keep_ratio=0.3), method))
    similarities = [neighbour.similarity for neighbour in assignment.neighbours]
    assert len(similarities) == 3
    assert similarities == sorted(similarities, reverse=True)
    assert {n.entry for n in assignment.neighbours} <= {entry.entry for entry in library.entries()}


def test_what_is_sent_is_cut_by_the_mask_from_the_librarys_backbone(coordinator, offer, weights):
    sent = coordinator.assign(ask(offer, 1, Budget(keep_ratio=0.3))).subnetwork
    expected = SubNetwork.of(offer.backbone, in_half_precision(weights), sent.mask)
    assert sent.weights.keys() == expected.weights.keys()
    assert all(torch.equal(sent.weights[name], expected.weights[name]) for name in expected.weights)


@both_methods
def test_in_an_empty_library_the_backbones_importance_chooses_and_the_answer_says_so(
    empty, offer, weights, method
):
    assignment = Coordinator(empty, weights).assign(ask(offer, 1, Budget(keep_ratio=0.3), method))
    counts = allot(offer.structure, Budget(keep_ratio=0.3), CLASSES)
    expected = Mask.keep_top(offer.structure, magnitude(weights, offer.structure), counts)
    assert assignment.origin == "importance"
    assert assignment.neighbours == ()
    assert assignment.subnetwork.mask == expected


# Within the budget


headrooms = st.floats(1, 1.1) | st.floats(1, 4)
budgets = st.builds(Budget, keep_ratio=st.floats(0.03, 1), headroom=headrooms) | st.builds(
    Budget, parameters=st.integers(40_000, 500_000), headroom=headrooms
)
numbers = iter(range(1_000_000, 2_000_000))


@settings(max_examples=40, deadline=None)
@given(budgets, st.sampled_from(METHODS), st.integers(2, 9))
def test_the_network_that_a_device_builds_is_never_above_its_budget(lasting, budget, method, classes):
    """SMSP's holds what it was sent; MVP's ends with the target, and until then may hold more."""
    offer = lasting.offer()
    assignment = lasting.assign(ask(offer, next(numbers), budget, method, classes))
    held = assignment.subnetwork.mask.counts
    network = assignment.subnetwork.network(classes)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert parameters == offer.structure.parameters(held, classes)
    allowed = budget.while_adapting if method == "mvp" else budget
    for kept, limit in ((held, allowed), (assignment.target, budget)):
        if limit.parameters is None:
            assert sum(kept) <= limit.keep_ratio * offer.structure.units + 1e-6
        else:
            assert offer.structure.parameters(kept, classes) <= limit.parameters


@settings(max_examples=40, deadline=None)
@given(budgets)
@example(Budget(parameters=59_636, headroom=1.02))
def test_mvp_prunes_from_what_headroom_allows_to_the_budget(lasting, budget):
    offer = lasting.offer()
    assignment = lasting.assign(ask(offer, next(numbers), budget, "mvp"))
    held = assignment.subnetwork.mask.counts
    within = allot(offer.structure, budget, CLASSES)
    assert held == allot(offer.structure, budget.while_adapting, CLASSES, beyond=within)
    assert all(want <= have for want, have in zip(assignment.target, held, strict=True))
    if held == within:
        assert assignment.rounds == 0  # nothing to prune: it explores, as SMSP does
    else:
        assert assignment.target == within
        assert assignment.rounds == VotingSettings().rounds


def test_mvp_with_headroom_holds_more_than_it_is_to_end_with(coordinator, offer):
    assignment = coordinator.assign(ask(offer, 1, Budget(keep_ratio=0.3, headroom=1.5), "mvp"))
    held = assignment.subnetwork.mask.counts
    assert all(want < have for want, have in zip(assignment.target, held, strict=True))
    assert sum(held) == pytest.approx(1.5 * sum(assignment.target), rel=0.02)


def test_smsp_is_sent_runners_up_and_asked_to_give_as_many_units_up(library, offer, weights):
    """A tenth of every group is not what was voted for, though it is as large."""
    task = ask(offer, 1, Budget(keep_ratio=0.4))
    exploring = Coordinator(library, weights, VotingSettings(explore=0.1))
    assignment = exploring.assign(task)
    held = assignment.subnetwork.mask.counts
    sizes = offer.structure.sizes
    explored = [min(n - 1, size - n, round(0.1 * n)) for n, size in zip(held, sizes, strict=True)]
    assert held == allot(offer.structure, task.budget, CLASSES)
    assert assignment.target == tuple(np.subtract(held, explored))
    assert assignment.rounds == 0
    plain = Coordinator(library, weights, VotingSettings(explore=0))
    voted = plain.assign(replace(task, request_id=request_id(2)))
    assert voted.target == voted.subnetwork.mask.counts == held
    strange = assignment.subnetwork.mask.kept & ~voted.subnetwork.mask.kept
    assert int(strange.sum()) == sum(explored) > 0


def test_two_devices_of_one_task_explore_differently(coordinator, offer):
    task = ask(offer, 1, Budget(keep_ratio=0.4))
    other = coordinator.assign(replace(task, request_id=request_id(2)))
    assert coordinator.assign(task).subnetwork.mask != other.subnetwork.mask


@both_methods
def test_a_budget_for_everything_is_sent_the_whole_backbone(coordinator, offer, method):
    assignment = coordinator.assign(ask(offer, 1, Budget(keep_ratio=1.0), method))
    assert assignment.subnetwork.mask == Mask.full(offer.structure)


@both_methods
def test_a_budget_that_nothing_fits_leaves_no_trace(coordinator, library, offer, method):
    """So the device may ask again, under the same id, for what the error names."""
    with pytest.raises(BudgetError, match="ask for at least"):
        coordinator.assign(ask(offer, 1, Budget(parameters=1000), method))
    assert library.assignment_of(request_id(1)) is None
    coordinator.assign(ask(offer, 1, Budget(parameters=100_000), method))


# Who does not belong


def test_weights_that_the_library_was_not_founded_on_are_refused_with_both_digests(library, weights):
    other = {name: tensor.clone() for name, tensor in weights.items()}
    next(iter(other.values())).flatten()[0] += 1e-3
    with pytest.raises(MismatchError, match=weights_digest(other)[:12]) as refused:
        Coordinator(library, other)
    assert weights_digest(weights)[:12] in str(refused.value)


def test_a_signature_of_another_probe_is_refused_and_not_stored(coordinator, library, offer):
    task = ask(offer, 1, Budget(keep_ratio=0.3))
    other = TaskSignature("ab" * 32, task.signature.means, task.signature.counts)
    with pytest.raises(MismatchError, match="fetch the probe"):
        coordinator.assign(replace(task, signature=other))
    assert library.assignment_of(task.request_id) is None


def test_a_contribution_to_nothing_that_was_assigned_is_refused_and_does_not_vote(coordinator, offer):
    mask = random_mask(offer.structure, np.random.default_rng(0))
    with pytest.raises(InputError, match="never assigned"):
        coordinator.record(Contribution(request_id(1), mask, 0.0, 1.0, 1))
    assert len(coordinator) == SEEDS


@pytest.mark.parametrize(
    "values", [{"neighbours": 0}, {"rounds": 0}, {"rounds": 1001}, {"explore": -0.1}, {"explore": 1.0}]
)
def test_settings_that_elect_nothing_are_refused(values):
    with pytest.raises(InputError, match="needed are at least one neighbour"):
        VotingSettings(**values)


@pytest.mark.parametrize("prior", [-0.1, float("nan"), float("inf")])
def test_a_prior_that_is_no_number_from_0_is_refused(prior):
    with pytest.raises(InputError, match="the prior is"):
        VotingSettings(prior=prior)
