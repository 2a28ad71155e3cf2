"""The library: what is stored comes back as it was, once, and creating overwrites nothing."""

import tempfile
import uuid
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from library_tasks import WEIGHTS_DIGEST, adapt, contribution, request_id, stored_assignment
from random_tasks import random_mask, random_signature

from common.budget import Budget
from common.errors import AccessError, InputError, LibraryError, MismatchError
from common.exchange import Contribution, Neighbour, Receipt, TaskDescription
from common.mask import Mask
from server.library import Entry, Library, seed_entry
from server.library_file import appearing
from server.operator_codec import decode_facts, encode_facts

INJECTION = "'); DROP TABLE tasks; --"


@pytest.fixture(scope="module")
def shared_library(offer, tmp_path_factory):
    with Library.create(
        tmp_path_factory.mktemp("shared") / "library.db", offer, WEIGHTS_DIGEST
    ) as library:
        yield library


# What is stored comes back


def test_a_library_opened_again_offers_what_it_was_created_with(library, path, offer):
    library.close()
    with Library.open(path) as again:
        assert again.weights_digest == WEIGHTS_DIGEST
        assert again.offer.backbone == offer.backbone
        assert again.offer.structure.to_json() == offer.structure.to_json()
        assert again.offer.structure.digest == offer.structure.digest
        assert again.offer.probe.digest == offer.probe.digest
        np.testing.assert_array_equal(again.offer.probe.center, offer.probe.center)


def test_an_entry_is_the_task_with_its_contribution(library, path, offer):
    """Read by a second library on the file, while the first is open."""
    before = datetime.now(UTC)
    receipt = adapt(library, 7)
    assignment, given_back = stored_assignment(offer, 7), contribution(offer, 7)
    with Library.open(path) as reader:
        entry = reader.entry(receipt.entry)
        assert reader.entries() == [entry]
    assert before <= entry.recorded <= datetime.now(UTC)
    assert entry == Entry(
        entry=request_id(7),
        signature=assignment.description.signature,
        mask=given_back.mask,
        method="mvp",
        accuracy_before=0.1,
        accuracy_after=7 / 8,
        iterations=25,
        neighbours=assignment.neighbours,
        contributor="device-7",
        recorded=entry.recorded,
        position=1,
    )
    assert entry.keep_ratio == given_back.mask.density


def test_a_seed_is_an_entry_without_neighbours_that_was_assigned_nothing(library, offer):
    generator = np.random.default_rng(0)
    signature, mask = random_signature(offer.probe, generator), random_mask(offer.structure, generator)
    name = seed_entry("flowers", signature)
    receipt = library.seed(name, signature, mask, accuracy_before=0.2, accuracy_after=0.9, iterations=120)
    entry = library.entry(name)
    assert receipt == Receipt(name, 1)
    assert (entry.signature, entry.mask, entry.method) == (signature, mask, "iterative")
    assert (entry.accuracy_before, entry.accuracy_after, entry.iterations) == (0.2, 0.9, 120)
    assert (entry.neighbours, entry.contributor) == ((), "operator")
    assert library.assignment_of(name) is None


ratios = st.floats(0, 1, exclude_min=True)
budgets = st.builds(Budget, keep_ratio=ratios, headroom=st.floats(1, 1000)) | st.builds(
    Budget, parameters=st.integers(1, 2**63 - 1), wait_seconds=st.floats(0, 86_400)
)
neighbours = st.lists(st.builds(Neighbour, st.text(), st.floats(0, 1)), max_size=3).map(tuple)


@settings(max_examples=30, deadline=None)
@given(budgets, neighbours, st.text(), st.floats(0, 1), st.integers(0, 2**31 - 1))
@example(Budget(parameters=1), (Neighbour(INJECTION, 0.5),), INJECTION, 1.0, 0)
def test_whatever_a_device_may_say_comes_back_as_it_was(
    shared_library, budget, voters, contributor, accuracy, iterations
):
    """Names are data, whatever they hold, and numbers keep every bit."""
    id_ = uuid.uuid4().hex
    known = stored_assignment(shared_library.offer, 1)
    assignment = replace(
        known,
        target=known.mask.counts,
        description=TaskDescription(id_, known.description.signature, budget),
        neighbours=voters,
        contributor=contributor,
    )
    shared_library.assigned(assignment)
    shared_library.record(Contribution(id_, known.mask, accuracy, 1 - accuracy, iterations))
    assert shared_library.assignment_of(id_) == assignment
    entry = shared_library.entry(id_)
    assert (entry.neighbours, entry.contributor, entry.method) == (voters, contributor, "smsp")
    assert (entry.accuracy_before, entry.accuracy_after) == (accuracy, 1 - accuracy)
    assert entry.iterations == iterations


def test_a_task_is_no_entry_before_it_is_recorded(library, offer):
    library.assigned(stored_assignment(offer, 1))
    assert (len(library), library.entries(), library.has(request_id(1))) == (0, [], False)
    with pytest.raises(InputError, match="no entry"):
        library.entry(request_id(1))
    library.record(contribution(offer, 1))
    assert (len(library), library.has(request_id(1))) == (1, True)


# Twice is the same as once


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 4) | st.just("restart"), min_size=1, max_size=12))
def test_entries_are_in_the_order_of_first_delivery_however_often_each_is_delivered(offer, deliveries):
    """A reply that was lost, a message sent twice, a restart between: one row, and one receipt."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "library.db"
        library = Library.create(path, offer, WEIGHTS_DIGEST)
        order: list[int] = []
        for number in deliveries:
            if number == "restart":
                library.close()
                library = Library.open(path)
                continue
            if number not in order:
                order.append(number)
            assert adapt(library, number) == Receipt(request_id(number), order.index(number) + 1)
        assert [entry.entry for entry in library.entries()] == [request_id(n) for n in order]
        assert len(library) == len(order)
        library.close()


def test_a_request_asked_again_is_answered_with_its_first_assignment(library, offer):
    """Also when another vote would now assign something else."""
    first = stored_assignment(offer, 1)
    later = replace(
        stored_assignment(offer, 2), description=first.description, contributor=first.contributor
    )
    assert library.assigned(first) == first
    assert library.assigned(later) == first
    assert library.assignment_of(request_id(1)) == first
    assert library.assignment_of(request_id(2)) is None


def test_a_request_is_its_askers_and_the_operators(library, offer):
    first = stored_assignment(offer, 1)
    library.assigned(first)
    with pytest.raises(AccessError, match=r"not assigned to 'somebody'.*use the token"):
        library.assigned(replace(first, contributor="somebody"))
    with pytest.raises(AccessError, match="not assigned to 'somebody'"):
        library.record(contribution(offer, 1), "somebody")
    assert len(library) == 0
    with pytest.raises(AccessError, match="not assigned to a device without a name"):
        library.assigned(replace(first, contributor=""))
    assert library.assigned(first) == first
    receipt = library.record(contribution(offer, 1), "device-1")
    with pytest.raises(AccessError, match="not assigned to 'somebody'"):
        library.record(contribution(offer, 1), "somebody")
    assert library.record(contribution(offer, 1)) == receipt


@pytest.mark.parametrize(
    "change",
    [
        lambda asked, offer: replace(asked, budget=Budget(keep_ratio=0.2)),
        lambda asked, offer: replace(asked, method="smsp"),
        lambda asked, offer: replace(asked, signature=stored_assignment(offer, 2).description.signature),
    ],
    ids=["budget", "method", "signature"],
)
def test_a_request_id_stands_for_one_request(library, offer, change):
    first = stored_assignment(offer, 1)
    library.assigned(first)
    with pytest.raises(InputError, match="draw a new one"):
        library.assigned(replace(first, description=change(first.description, offer)))
    assert library.assignment_of(request_id(1)) == first


@pytest.mark.parametrize(
    "change", [{"accuracy_before": 0.11}, {"accuracy_after": 0.0}, {"iterations": 26}, {"mask": None}]
)
def test_a_second_contribution_that_differs_is_refused_and_the_first_stays(library, offer, change):
    adapt(library, 1)
    kept = library.entries()
    if "mask" in change:
        change = {"mask": contribution(offer, 1, draw=1).mask}
    with pytest.raises(InputError, match="the first stays"):
        library.record(replace(contribution(offer, 1), **change))
    assert library.entries() == kept


def test_a_mask_that_cannot_come_of_what_was_assigned_is_refused(library, offer):
    """Units that the device never held, and another number than it was to keep."""
    held = stored_assignment(offer, 1)
    library.assigned(held)
    for mask in (Mask.full(offer.structure), held.mask, contribution(offer, 2).mask):
        with pytest.raises(InputError, match="cannot come of its assignment"):
            library.record(replace(contribution(offer, 1), mask=mask))
    assert len(library) == 0


def test_a_contribution_to_nothing_that_was_assigned_is_refused(library, offer):
    with pytest.raises(InputError, match="never assigned"):
        library.record(contribution(offer, 1))
    assert len(library) == 0


def test_seeding_goes_on_where_it_stopped(library, path, offer):
    """The same seed again changes nothing, another outcome or task under its name is refused."""
    generator = np.random.default_rng(0)
    signature, mask = random_signature(offer.probe, generator), random_mask(offer.structure, generator)
    name = seed_entry("birds", signature)
    outcome = {"accuracy_before": 0, "accuracy_after": 1, "iterations": 120}
    receipt = library.seed(name, signature, mask, **outcome)
    adapt(library, 1)
    library.close()
    with Library.open(path) as again:
        assert again.has(seed_entry("birds", signature))
        assert not again.has(seed_entry("fish", signature))
        assert again.seed(name, signature, mask, **outcome) == receipt
        with pytest.raises(InputError, match="the first stays"):
            again.seed(name, signature, mask, **outcome | {"iterations": 119})
        with pytest.raises(InputError, match="another task"):
            again.seed(name, random_signature(offer.probe, generator), mask, **outcome)
        assert len(again) == 2


def test_masks_and_signatures_of_another_library_are_refused(library, offer):
    ours = stored_assignment(offer, 1)
    group = offer.structure.groups[0].name
    smaller = offer.structure.without({group: "for the test"})
    their_mask = Mask.full(smaller)
    their_signature = replace(ours.description.signature, probe="0" * 64)
    numbers = {"accuracy_before": 0.0, "accuracy_after": 1.0, "iterations": 1}
    with pytest.raises(MismatchError):
        library.assigned(replace(ours, mask=their_mask))
    with pytest.raises(MismatchError):
        library.assigned(replace(ours, description=replace(ours.description, signature=their_signature)))
    with pytest.raises(MismatchError):
        library.record(replace(contribution(offer, 1), mask=their_mask))
    with pytest.raises(MismatchError):
        library.seed(request_id(1), ours.description.signature, their_mask, **numbers)
    with pytest.raises(MismatchError):
        library.seed(request_id(1), their_signature, ours.mask, **numbers)


@pytest.mark.parametrize("name", ["x" * 201, "k\udcfcche"], ids=["too long", "bytes that are no text"])
def test_a_contributors_name_that_no_operator_could_be_told_is_refused(library, offer, name):
    """One such entry would make every list of the whole library fail where it is served."""
    ours = stored_assignment(offer, 1)
    numbers = {"accuracy_before": 0.0, "accuracy_after": 1.0, "iterations": 1}
    with pytest.raises(InputError, match=r"characters.*at most 200 characters: take another"):
        library.assigned(replace(ours, contributor=name))
    with pytest.raises(InputError, match=r"characters.*at most 200 characters: take another"):
        library.seed(request_id(1), ours.description.signature, ours.mask, contributor=name, **numbers)
    assert library.statistics().unanswered == len(library) == 0


def test_the_longest_contributors_name_is_kept_and_told(library, offer):
    library.assigned(replace(stored_assignment(offer, 1), contributor="ü" * 200))
    library.record(contribution(offer, 1))
    (facts,) = library.facts()
    assert facts.contributor == "ü" * 200
    assert decode_facts(encode_facts(facts)) == facts


# A new library


def test_creating_overwrites_no_file(path, offer, stocked):
    """Nor does it go beside a log of an earlier library, which SQLite would replay into it."""
    before = stocked.read_bytes()
    with pytest.raises(InputError, match="already"):
        Library.create(path, offer, WEIGHTS_DIGEST)
    assert path.read_bytes() == before
    path.rename(path.with_name("library.db-wal"))
    with pytest.raises(InputError, match=r"library\.db-wal already"):
        Library.create(path, offer, WEIGHTS_DIGEST)
    assert not path.exists()


def test_a_file_that_came_while_a_library_was_made_stays(tmp_path, path):
    def make() -> None:
        with appearing(path) as made:
            made.write_text("the library")
            path.write_text("somebody was quicker")

    with pytest.raises(InputError, match="overwrites nothing"):
        make()
    assert path.read_text() == "somebody was quicker"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("pages", [1, 10, 100])
def test_creating_leaves_nothing_when_it_fails(tmp_path, path, offer, at_checkout, pages):
    at_checkout.append(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(LibraryError, match="disk is full"):
        Library.create(path, offer, WEIGHTS_DIGEST)
    assert list(tmp_path.iterdir()) == []


def test_creating_in_no_directory_is_refused(tmp_path, offer):
    with pytest.raises(LibraryError, match="check its path"):
        Library.create(tmp_path / "nowhere" / "library.db", offer, WEIGHTS_DIGEST)


def test_a_path_may_hold_what_an_address_may_not(tmp_path, offer):
    path = tmp_path / "50% of ?mode=memory#'tasks' ü.db"
    with Library.create(path, offer, WEIGHTS_DIGEST) as library:
        adapt(library, 1)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    with Library.open(path) as library:
        assert len(library) == 1
