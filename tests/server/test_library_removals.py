"""Removals: an entry that is removed stays, marked, takes no part in votes, and can be restored."""

from datetime import UTC, datetime

import pytest
from library_tasks import adapt, adapt_all, change, contribution, request_id, stored_assignment

from common.errors import InputError, LibraryError
from server.entries import Removal
from server.library import Library, Revision


def test_an_entry_that_is_removed_keeps_its_place_and_says_by_whom_and_why(library):
    adapt_all(library, (1, 2, 3))
    before = datetime.now(UTC)
    facts = library.remove(request_id(2), "boss", "a fish among birds")
    assert facts.removed == Removal(facts.removed.at, "boss", "a fish among birds")
    assert before <= facts.removed.at <= datetime.now(UTC)
    assert facts == library.facts_of(request_id(2))
    assert library.removal_of(request_id(2)) == facts.removed
    assert [(f.entry, f.position, f.removed is None) for f in library.facts()] == [
        (request_id(1), 1, True), (request_id(2), 2, False), (request_id(3), 3, True),
    ]  # fmt: skip
    assert [entry.entry for entry in library.entries()] == [request_id(n) for n in (1, 2, 3)]
    assert library.entry(request_id(2)).position == 2
    assert len(library) == 3
    assert adapt(library, 4).entries == 4


def test_what_is_removed_is_restored_and_removed_again_as_often_as_one_likes(library):
    adapt(library, 1)
    name = request_id(1)
    for turn in range(3):
        assert library.remove(name, "boss", f"turn {turn}").removed.reason == f"turn {turn}"
        assert library.restore(name, "boss", "not at all").removed is None
        assert library.removal_of(name) is None
    assert [(d.number, d.entry, d.removed, d.by) for d in library.removals()] == [
        (number, name, number % 2 == 1, "boss") for number in range(1, 7)
    ]


def test_twice_is_the_same_as_once(library):
    adapt(library, 1)
    name = request_id(1)
    assert library.restore(name, "boss", "it never was").removed is None
    first = library.remove(name, "boss", "a fish")
    assert library.remove(name, "another", "another reason") == first
    assert len(library.removals()) == 1
    library.restore(name, "boss", "a bird")
    assert library.restore(name, "boss", "a bird").removed is None
    assert len(library.removals()) == 2


def test_what_is_no_entry_cannot_be_removed(library, offer):
    library.assigned(stored_assignment(offer, 1))
    for name in (request_id(1), request_id(2), "", "'; DROP TABLE removals; --"):
        for change_it in (library.remove, library.restore):
            with pytest.raises(InputError, match="there is no entry"):
                change_it(name, "boss", "a fish")
    assert library.removals() == []


@pytest.mark.parametrize(
    ("by", "reason"),
    [
        ("boss", ""),
        ("boss", "x" * 501),
        ("boss", "two\nlines"),
        ("boss", "\x1b[31mred"),
        ("boss", "\u202egnorw"),
        ("b" * 201, "a fish"),
        ("bo\0ss", "a fish"),
    ],
)
def test_who_and_why_are_a_line_of_text(library, by, reason):
    adapt(library, 1)
    for change_it in (library.remove, library.restore):
        with pytest.raises(InputError, match=r"printable.*in one line"):
            change_it(request_id(1), by, reason)
    assert library.removals() == []
    longest = library.remove(request_id(1), "b" * 200, "ü" * 500).removed
    assert (longest.by, longest.reason) == ("b" * 200, "ü" * 500)


def test_a_removed_entry_still_answers_its_device(library, offer):
    """The same contribution gets the same receipt, and that changes nothing."""
    receipt = adapt(library, 1)
    library.remove(request_id(1), "boss", "a fish")
    assert library.record(contribution(offer, 1)) == receipt
    assert library.removal_of(request_id(1)) is not None


def test_the_revision_is_larger_after_every_change_and_says_what_is_new(library, path):
    assert library.revision() == Revision(0, 0)
    with Library.open(path) as other:
        adapt_all(other, (1, 2, 3))
        assert library.revision() == Revision(3, 0)
        other.remove(request_id(2), "boss", "a fish")
        other.restore(request_id(2), "boss", "a bird")
        assert library.revision() == Revision(3, 2)
        adapt(other, 4)
        assert library.revision() == Revision(4, 2)
    assert [entry.position for entry in library.entries(after=2)] == [3, 4]
    assert library.entries(after=4) == []
    assert [decision.removed for decision in library.removals(after=1)] == [False]
    assert library.removals(after=2) == []


@pytest.mark.parametrize(
    "damage", ["removed = 0", "entry = 'x'", "reason = 'a bird'", 'at = "by"', "sha256 = ''"]
)
def test_a_damaged_line_is_told_also_while_the_library_is_open(library, path, damage):
    adapt(library, 1)
    library.remove(request_id(1), "boss", "a fish")
    change(path, f"UPDATE removals SET {damage}")
    with pytest.raises(LibraryError, match=rf"{path}.*line 1 of its removals is damaged.*restore"):
        library.removals()
    with pytest.raises(LibraryError, match="removals is damaged"):
        Library.open(path)
