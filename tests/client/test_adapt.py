"""A device's whole adaptation, on real images of characters, against a server in this process."""

from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from glyph_tasks import glyph_backbone, glyph_images, glyph_task
from random_weights import random_weights

from client.adapt import Unkept, adapt, adapt_assignment, describe, generator_of
from common.adaptation import Adapted
from common.budget import Budget
from common.errors import MismatchError
from common.exchange import METHODS, Assignment, Contribution, Receipt
from common.fine_tune import FineTuneSettings
from common.fitting import accuracy
from common.images import PixelImages
from common.mask import Mask
from common.proto_codec import decode_assignment, encode_assignment
from common.pruning import PruningSettings
from common.task_data import Task
from server.coordinator import Coordinator
from server.founding import found_library, seed_library

SETTINGS = FineTuneSettings(iterations=12, batch_size=16, fit_images=128)
BUDGETS = {"smsp": Budget(keep_ratio=0.4), "mvp": Budget(keep_ratio=0.4, headroom=1.5)}

both_methods = pytest.mark.parametrize("method", METHODS)
numbers = count(1)


def new_request_id() -> str:
    return f"{next(numbers):032x}"


@pytest.fixture(scope="module")
def backbone():
    return glyph_backbone()


@pytest.fixture(scope="module")
def coordinator(backbone, tmp_path_factory):
    """A server with a library of three tasks."""
    weights = random_weights(backbone)
    images = glyph_images("ΓΔΛΞΠΣ", 20, backbone, seed=50)
    path = tmp_path_factory.mktemp("library") / "library.db"
    with found_library(path, backbone, weights, images) as library:
        seed_library(
            library,
            weights,
            [(c, partial(glyph_task, c, backbone, each=12)) for c in ("ABC", "DEF", "GHX")],
            keep_ratio=0.4,
            settings=replace(SETTINGS, iterations=6),
            pruning=PruningSettings(rounds=2),
        )
        yield Coordinator(library, weights)


@dataclass(frozen=True)
class Outcome:
    """All that a device saw, and what the server stored of it."""

    task: Task
    adapted: Adapted
    assignment: Assignment
    receipt: Receipt
    contributed: Mask


def run(
    coordinator: Coordinator,
    task: Task,
    method="smsp",
    *,
    settings: FineTuneSettings = SETTINGS,
    evaluate_at: tuple[int, ...] = (),
    progress=None,
) -> Outcome:
    steps = Unkept()
    adaptation, receipt = adapt(
        coordinator,
        task,
        BUDGETS[method],
        settings,
        torch.Generator().manual_seed(0),
        method=method,
        request_id=new_request_id(),
        steps=steps,
        evaluate_at=evaluate_at,
        progress=progress,
    )
    return Outcome(task, adaptation.adapted, steps.assignment, receipt, coordinator.masks[receipt.entry])


@pytest.fixture(scope="module")
def task(backbone) -> Task:
    return glyph_task("AEW", backbone, seed=3)


@pytest.fixture(scope="module", params=METHODS)
def outcome(request, coordinator, task) -> Outcome:
    return run(coordinator, task, request.param, evaluate_at=(4, 9))


# What a device tells


def test_a_device_tells_its_class_means_and_counts_and_no_names(coordinator, backbone):
    offer = coordinator.offer()
    task = glyph_task("AEW", backbone, each=7)
    told = describe(offer, task, Budget(keep_ratio=0.4), "smsp", "0" * 32)
    renamed = replace(task, classes=("secret", "names", "of classes"))
    assert told == describe(offer, renamed, Budget(keep_ratio=0.4), "smsp", "0" * 32)
    assert told.signature.counts.tolist() == [7, 7, 7]
    assert told.signature.means.shape == (3, len(offer.probe.center))


def test_images_that_judge_are_not_described(coordinator, backbone, task):
    others = replace(task, evaluation=glyph_images("AEW", 5, backbone, seed=99))
    told = [
        describe(coordinator.offer(), mine, Budget(keep_ratio=0.4), "smsp", "0" * 32)
        for mine in (task, others)
    ]
    assert told[0] == told[1]


@pytest.mark.parametrize("now", ["AE", "AEWX"])
def test_a_class_that_came_or_went_since_the_task_was_described_is_told(coordinator, backbone, task, now):
    told = describe(coordinator.offer(), task, BUDGETS["smsp"], "smsp", new_request_id())
    changed = glyph_task(now, backbone, seed=3)
    with pytest.raises(MismatchError, match=f"of 3 classes, the images are of {len(now)} .A, E"):
        adapt_assignment(coordinator.assign(told), changed, SETTINGS, torch.Generator())


# What a device gives back


def test_the_contribution_is_no_echo_of_the_vote(outcome):
    """It is within what was sent, as large as was asked, and not what was sent."""
    sent = outcome.assignment.subnetwork.mask
    assert outcome.contributed.within(sent)
    assert outcome.contributed.counts == outcome.assignment.target
    assert outcome.contributed != sent


def test_two_tasks_that_are_sent_the_same_network_give_different_masks_back(coordinator, backbone):
    task, other = (glyph_task(characters, backbone) for characters in ("AEW", "SZM"))
    description = describe(coordinator.offer(), task, BUDGETS["mvp"], "mvp", new_request_id())
    assignment = coordinator.assign(description)
    masks = [
        adapt_assignment(assignment, mine, SETTINGS, torch.Generator().manual_seed(0))[1].mask
        for mine in (task, other)
    ]
    assert masks[0] != masks[1]


def test_what_is_stored_is_what_the_device_measured(outcome, coordinator):
    entry = coordinator._library.entry(outcome.receipt.entry)
    assert entry.entry == outcome.assignment.request_id
    assert (entry.accuracy_before, entry.accuracy_after) == (
        outcome.adapted.before,
        outcome.adapted.after,
    )
    assert entry.iterations == outcome.adapted.kept
    assert entry.method == outcome.assignment.method
    assert entry.neighbours == outcome.assignment.neighbours


def test_accuracies_are_there_at_the_start_the_end_and_the_iterations_asked_for(outcome):
    assert sorted(outcome.adapted.accuracies) == [0, 4, 9, SETTINGS.iterations]
    assert all(0 <= value <= 1 for value in outcome.adapted.accuracies.values())


def test_the_accuracy_in_the_end_is_that_of_the_network_returned(outcome):
    adapted = outcome.adapted
    assert accuracy(adapted.network, outcome.task.evaluation) == adapted.after
    assert not adapted.network.training


def test_the_best_ranked_units_of_the_network_are_those_given_back(outcome):
    pruned = outcome.adapted.pruned
    for name, kept in outcome.contributed.items():
        left = pruned.mask[name] & ~kept
        if left.any():
            assert pruned.scores[name][kept].min() >= pruned.scores[name][left].max()


# What a device ends with


def test_smsp_ends_with_the_network_it_was_sent(coordinator, task):
    outcome = run(coordinator, task, "smsp")
    assert outcome.adapted.pruned.mask == outcome.assignment.subnetwork.mask


def test_mvp_ends_with_the_targets_units_and_a_network_of_that_size(coordinator, task):
    outcome = run(coordinator, task, "mvp")
    assert outcome.adapted.pruned.mask == outcome.contributed
    assert outcome.contributed.counts == outcome.assignment.target
    held = outcome.assignment.subnetwork.mask.counts
    assert all(few < many for few, many in zip(outcome.contributed.counts, held, strict=True))
    network = outcome.adapted.network
    structure = coordinator.offer().structure
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert parameters == structure.parameters(outcome.assignment.target, len(task.classes))


@both_methods
def test_an_easy_task_is_learned_far_above_chance(coordinator, backbone, method):
    """From random weights, so from these iterations alone: chance is a third."""
    settings = replace(SETTINGS, iterations=60, learning_rate=0.05)
    task = glyph_task("OXI", backbone, each=60)
    adapted = run(coordinator, task, method, settings=settings).adapted
    assert adapted.after > 0.75
    assert adapted.after > adapted.before


@both_methods
def test_the_same_seed_gives_the_same_network_and_the_same_mask(coordinator, task, method):
    description = describe(coordinator.offer(), task, BUDGETS[method], method, new_request_id())

    def once(seed: int) -> tuple[Adapted, Contribution]:
        assignment = coordinator.assign(description)
        return adapt_assignment(assignment, task, SETTINGS, torch.Generator().manual_seed(seed))

    (one, first), (same, again), (other, _) = once(1), once(1), once(2)
    assert first == again
    assert one.accuracies == same.accuracies

    def values(adapted: Adapted) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in adapted.network.parameters()])

    assert torch.equal(values(one), values(same))
    if one.pruned.mask == other.pruned.mask:
        assert not torch.equal(values(one), values(other))


def test_what_was_sent_is_left_as_it_was(coordinator, task):
    """The assignment's network is tuned where it lies; but a device that failed after tuning decodes
    what it was sent once more, and starts over from the server's weights, not from its own."""
    description = describe(coordinator.offer(), task, BUDGETS["smsp"], "smsp", new_request_id())
    structure = coordinator.offer().structure
    message, payload = encode_assignment(coordinator.assign(description))
    sent = bytes(payload)

    def attempt() -> Contribution:
        assignment = decode_assignment(message, payload, structure)
        return adapt_assignment(assignment, task, SETTINGS, torch.Generator().manual_seed(0))[1]

    assert attempt() == attempt()
    assert payload == sent


@both_methods
def test_progress_tells_every_iteration_once(coordinator, task, method):
    told: list[tuple[int, int]] = []
    run(coordinator, task, method, progress=lambda done, of: told.append((done, of)))
    assert told == [(done, SETTINGS.iterations) for done in range(SETTINGS.iterations + 1)]


def test_seconds_are_told_by_step(outcome):
    assert outcome.adapted.seconds.keys() == {"fit", "tune", "evaluate"}
    assert all(seconds > 0 for seconds in outcome.adapted.seconds.values())


# Steps that are kept


class Refusing:
    """A server that must not be asked."""

    def offer(self):
        raise AssertionError("asked for an offer")

    def assign(self, task):
        raise AssertionError("asked for a sub-network")

    def record(self, contribution):
        raise AssertionError("asked to record")


def test_what_is_kept_is_neither_asked_nor_computed_again(coordinator, task):
    steps, budget = Unkept(), BUDGETS["smsp"]

    def go_on(with_whom, mine, steps, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return adapt(
            with_whom, mine, budget, SETTINGS, generator, request_id=new_request_id(), steps=steps
        )

    def no_task(offer):
        raise AssertionError("there is nothing to compute")

    first = go_on(coordinator, task, steps)
    assert go_on(Refusing(), no_task, steps, seed=1) == first
    unsent = replace(steps, receipt=None)
    with pytest.raises(AssertionError, match="asked to record"):
        go_on(Refusing(), no_task, unsent)
    assert go_on(coordinator, no_task, unsent) == first
    asked = replace(steps, assignment=None, adaptation=None, receipt=None)
    assert go_on(coordinator, task, asked)[0].contribution == first[0].contribution
    assert asked.assignment.request_id == asked.description.request_id == first[1].entry


def test_randomness_is_of_the_seed_and_the_data_wherever_they_are_named_from(tmp_path, monkeypatch):
    def drawn(seed, place):
        return torch.randint(2**31, (4,), generator=generator_of(seed, place)).tolist()

    monkeypatch.chdir(tmp_path)
    assert drawn(1, Path("mine")) == drawn(1, tmp_path / "mine")
    others = [drawn(1, Path("mine")), drawn(2, Path("mine")), drawn(1, Path("other")), drawn(1, "mine")]
    others += [drawn(1, Path(name)) for name in ("mine\udcff", "mine\udcfe")]  # no text
    assert len({tuple(numbers) for numbers in others}) == 6


# Tasks at the edge


@both_methods
@pytest.mark.parametrize("images", [[1, 12, 12], [1, 1, 1], [1, 2], [40, 1]], ids=str)
def test_classes_of_a_single_image_and_tasks_of_two_classes_are_adapted_to(
    coordinator, backbone, method, images
):
    characters = "AEW"[: len(images)]
    some = torch.cat([torch.arange(number) + 40 * k for k, number in enumerate(images)])
    drawn = glyph_images(characters, 40, backbone, seed=0)
    train = PixelImages(drawn.pixels[some], drawn.labels[some], backbone)
    task = replace(glyph_task(characters, backbone, each=1), train=train)
    assert Counter(task.train.labels.tolist()) == dict(enumerate(images))
    outcome = run(coordinator, task, method, settings=replace(SETTINGS, iterations=5))
    assert outcome.contributed.counts == outcome.assignment.target
    for name, score in outcome.adapted.pruned.scores.items():
        assert np.isfinite(score[outcome.adapted.pruned.mask[name]]).all()
    assert all(parameter.isfinite().all() for parameter in outcome.adapted.network.parameters())


def test_a_task_of_more_classes_than_the_backbone_has_its_own_classifier(coordinator, backbone):
    task = glyph_task("ABCDEFGHJK", backbone, each=6)
    adapted = run(coordinator, task, settings=replace(SETTINGS, iterations=3)).adapted
    assert adapted.network.get_submodule(backbone.classifier).out_features == 10
    assert backbone.num_classes < 10
