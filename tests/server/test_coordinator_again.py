"""Coordinators of one library, asked again, by others, at once, and after what other processes did."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from coordinated_tasks import (
    SEEDS,
    answer_to,
    ask,
    both_methods,
    near,
    request_id,
    same_answer,
    signature,
    stock,
)

from common.backbone import weights_digest
from common.budget import Budget
from common.errors import AccessError, InputError
from common.exchange import METHODS, Assignment
from common.mask import Mask
from server.coordinator import Coordinator
from server.library import Library, seed_entry
from server.settings import VotingSettings
from server.similarity import ClassStatistics


@pytest.fixture
def library(path, offer, weights):
    """Of six tasks of the operator's."""
    with Library.create(path, offer, weights_digest(weights)) as library:
        stock(library)
        yield library


@pytest.fixture
def coordinator(library, weights) -> Coordinator:
    return Coordinator(library, weights)


# The same again


@both_methods
def test_a_request_repeated_is_answered_as_at_first_also_after_a_restart(
    path, coordinator, library, offer, weights, method
):
    """Though other tasks, nearer ones, have been recorded since."""
    task = ask(offer, 1, Budget(keep_ratio=0.3, headroom=1.5), method)
    first = coordinator.assign(task)
    for number in (2, 3):
        other = replace(task, request_id=request_id(number), signature=near(offer, task.signature))
        coordinator.record(answer_to(coordinator.assign(other)))
    assert same_answer(coordinator.assign(task), first)
    library.close()
    with Library.open(path) as reopened:
        settings = VotingSettings(neighbours=1, explore=0.3)
        again = Coordinator(reopened, weights, settings).assign(task)
        assert same_answer(again, first)


@pytest.mark.parametrize(
    "change",
    [
        lambda task, offer: replace(task, budget=Budget(keep_ratio=0.5)),
        lambda task, offer: replace(task, method="mvp"),
        lambda task, offer: replace(task, signature=signature(offer, 9)),
    ],
    ids=["budget", "method", "signature"],
)
def test_a_request_id_that_is_taken_does_not_answer_another_request(coordinator, offer, change):
    """Another budget above all: its device would be sent a network that it cannot hold."""
    task = ask(offer, 1, Budget(keep_ratio=0.3))
    first = coordinator.assign(task)
    with pytest.raises(InputError, match="draw a new one"):
        coordinator.assign(change(task, offer))
    assert same_answer(coordinator.assign(task), first)


def test_a_contribution_repeated_is_one_entry_and_the_same_receipt(coordinator, offer):
    contribution = answer_to(coordinator.assign(ask(offer, 1, Budget(keep_ratio=0.3))))
    receipt = coordinator.record(contribution)
    assert coordinator.record(contribution) == receipt
    assert len(coordinator) == SEEDS + 1


def test_a_contribution_that_differs_from_the_first_changes_nothing(coordinator, offer):
    assignment = coordinator.assign(ask(offer, 1, Budget(keep_ratio=0.3)))
    first = answer_to(assignment)
    coordinator.record(first)
    with pytest.raises(InputError, match="the first stays"):
        coordinator.record(replace(first, accuracy_after=1.0))
    assert coordinator.masks[first.request_id] == first.mask


# Who asks


def test_only_who_asked_is_answered_again_and_may_contribute(coordinator, offer):
    task = ask(offer, 1, Budget(keep_ratio=0.3))
    first = coordinator.assign(task, "kitchen")
    other_task = ask(offer, 2, Budget(keep_ratio=0.3))
    for refused in (
        lambda: coordinator.assign(task, "garden"),
        lambda: coordinator.choose(task, "garden"),
        lambda: coordinator.choose(replace(other_task, request_id=task.request_id), "garden"),
        lambda: coordinator.chosen(task.request_id, "garden"),
        lambda: coordinator.record(answer_to(first), "garden"),
    ):
        with pytest.raises(AccessError, match=r"not assigned to 'garden'.*use the token"):
            refused()
    assert len(coordinator) == SEEDS
    assert same_answer(coordinator.assign(task, "kitchen"), first)
    assert coordinator.chosen(task.request_id, "kitchen").mask == first.mask
    assert coordinator.record(answer_to(first), "kitchen").entry == task.request_id


def test_the_operator_goes_on_with_any_request_and_a_device_without_a_name_with_its_own(
    coordinator, offer
):
    """As with files, where a request id is all that a device shows."""
    task = ask(offer, 1, Budget(keep_ratio=0.3))
    first = coordinator.assign(task, "kitchen")
    assert same_answer(coordinator.assign(task, "kitchen"), first)
    for nameless in (
        lambda: coordinator.assign(task, ""),
        lambda: coordinator.chosen(task.request_id, ""),
        lambda: coordinator.record(answer_to(first), ""),
    ):
        with pytest.raises(AccessError, match="not assigned to a device without a name"):
            nameless()
    assert coordinator.chosen(task.request_id).mask == first.mask
    assert coordinator.record(answer_to(first)).entry == task.request_id


# More than one at a time


def test_two_coordinators_on_one_library_give_one_request_one_answer(coordinator, path, offer, weights):
    with Library.open(path) as again:
        other = Coordinator(again, weights, VotingSettings(neighbours=1))
        task = ask(offer, 1, Budget(keep_ratio=0.3))
        first = coordinator.assign(task)
        assert same_answer(other.assign(task), first)
        contribution = answer_to(first)
        assert other.record(contribution) == coordinator.record(contribution)
        assert len(coordinator) == len(other) == SEEDS + 1


def test_what_another_process_records_removes_and_restores_counts_from_the_next_vote_on(
    coordinator, library, path, offer, weights
):
    """Through a library of its own on the same file."""
    with Library.open(path) as again:
        other = Coordinator(again, weights)
        task = ask(offer, 1, Budget(keep_ratio=0.3))
        receipt = coordinator.record(answer_to(coordinator.assign(task)))
        asked = iter(range(2, 100))

        def nearest() -> str:
            near_by = replace(task, request_id=request_id(next(asked)), signature=following)
            return other.assign(near_by).neighbours[0].entry

        following = near(offer, task.signature)
        assert nearest() == receipt.entry
        for _ in range(2):
            library.remove(receipt.entry, "boss", "a fish")
            assert nearest() != receipt.entry
            assert len(other) == SEEDS
            library.restore(receipt.entry, "boss", "a bird")
            assert nearest() == receipt.entry
        kitchen = signature(offer, 50)
        library.seed(seed_entry("kitchen", kitchen), kitchen, Mask.full(offer.structure),
                     accuracy_before=0.25, accuracy_after=0.5, iterations=10)  # fmt: skip
        assert len(other) == SEEDS + 2


def test_what_is_removed_before_a_coordinator_starts_does_not_vote_either(library, offer, weights):
    entries = [entry.entry for entry in library.entries()]
    for entry in entries[:-1]:
        library.remove(entry, "boss", "a fish")
    coordinator = Coordinator(library, weights)
    assert len(coordinator) == 1
    assignment = coordinator.assign(ask(offer, 1, Budget(keep_ratio=0.3)))
    assert [neighbour.entry for neighbour in assignment.neighbours] == entries[-1:]
    library.remove(entries[-1], "boss", "a fish")
    assert coordinator.assign(ask(offer, 2, Budget(keep_ratio=0.3))).origin == "importance"


def test_a_flood_that_was_removed_takes_no_memory_at_the_next_start_and_can_be_restored(
    library, offer, weights
):
    class Counting(ClassStatistics):
        """Class statistics that tell whose rows they hold."""

        def add(self, entry, signature):
            super().add(entry, signature)
            held.append(entry)

    held: list[str] = []
    entries = [entry.entry for entry in library.entries()]
    for entry in entries[2:]:
        library.remove(entry, "boss", "a flood")
    library.restore(entries[3], "boss", "a bird")
    coordinator = Coordinator(library, weights, similarity=Counting.of(offer.probe))
    assert held == [entries[0], entries[1], entries[3]]
    assert set(coordinator.masks) == set(held)
    library.restore(entries[5], "boss", "another bird")
    assignment = coordinator.assign(ask(offer, 1, Budget(keep_ratio=0.3)))
    assert {neighbour.entry for neighbour in assignment.neighbours} == {*entries[:2], *entries[3::2]}
    assert len(coordinator) == 4


def test_a_device_that_adapts_to_its_data_time_and_again_has_one_ballot(coordinator, library, offer):
    """Its newest; once that is removed, the one before."""
    task = ask(offer, 1, Budget(keep_ratio=0.3))
    asked = iter(range(1, 100))

    def again() -> Assignment:
        return coordinator.assign(replace(task, request_id=request_id(next(asked))))

    entries = [coordinator.record(answer_to(again())).entry for _ in range(12)]
    seeded = {entry.entry for entry in library.entries()} - set(entries)
    assert {neighbour.entry for neighbour in again().neighbours} == {entries[-1]} | seeded
    library.remove(entries[-1], "boss", "a fish")
    assert {neighbour.entry for neighbour in again().neighbours} == {entries[-2]} | seeded
    library.restore(entries[-1], "boss", "a bird")
    assert {neighbour.entry for neighbour in again().neighbours} == {entries[-1]} | seeded


def test_what_a_removed_entry_voted_for_is_answered_as_before(coordinator, library, offer):
    """An answer that was given stays, whatever became of those who voted."""
    task = ask(offer, 1, Budget(keep_ratio=0.3))
    first = coordinator.assign(task)
    library.remove(first.neighbours[0].entry, "boss", "a fish")
    assert same_answer(coordinator.assign(task), first)
    assert coordinator.record(answer_to(first)).entry == task.request_id


def test_a_removal_during_votes_holds_for_every_vote_that_begins_after_it(coordinator, library, offer):
    """While eight devices ask, one entry after the other is removed."""
    removed: list[str] = []

    def ask_and_look(number: int) -> bool:
        gone = set(removed)
        assignment = coordinator.assign(ask(offer, number, Budget(keep_ratio=0.3)))
        return gone.isdisjoint(neighbour.entry for neighbour in assignment.neighbours)

    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(ask_and_look, number) for number in range(40)]
        for entry in [entry.entry for entry in library.entries()][:-1]:
            library.remove(entry, "boss", "a fish")
            removed.append(entry)
            answers.append(pool.submit(ask_and_look, 100 + len(removed)))
        assert all(answer.result() for answer in answers)
    assert len(coordinator) == 1


def test_sixteen_devices_at_once_are_all_answered_and_all_found_afterwards(coordinator, offer):
    def adapt(number: int) -> str:
        method = METHODS[number % 2]
        assignment = coordinator.assign(ask(offer, number, Budget(keep_ratio=0.3, headroom=1.2), method))
        return coordinator.record(answer_to(assignment)).entry

    with ThreadPoolExecutor(8) as pool:
        entries = list(pool.map(adapt, range(16)))
    assert len(coordinator) == SEEDS + 16
    assert set(entries) <= coordinator.masks.keys()
    for number, entry in enumerate(entries):
        task = replace(ask(offer, number, Budget(keep_ratio=0.3)), request_id=request_id(100 + number))
        assert coordinator.assign(task).neighbours[0].entry == entry
