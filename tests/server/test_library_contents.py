"""What an operator gets out of a library and puts into one: facts, entries, numbers."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
from library_tasks import (
    WEIGHTS_DIGEST,
    adapt,
    adapt_all,
    change,
    contribution,
    request_id,
    stored_assignment,
)
from random_tasks import random_mask, random_signature
from sqlalchemy import Engine, event

from common.errors import InputError, LibraryError, MismatchError
from common.exchange import Neighbour, Receipt
from common.mask import Mask
from server import library_contents
from server.entries import Entry, EntryFacts, Operations
from server.library import Library, seed_entry
from server.library_contents import PAGE_ENTRIES
from server.removals import standing


@pytest.fixture
def source(offer, tmp_path) -> Iterator[Library]:
    """Of a seed, and devices 1 to 4, the second of which is removed."""
    with Library.create(tmp_path / "source.db", offer, WEIGHTS_DIGEST) as library:
        generator = np.random.default_rng(0)
        signature = random_signature(offer.probe, generator)
        library.seed(seed_entry("birds", signature), signature, random_mask(offer.structure, generator),
                     accuracy_before=0.2, accuracy_after=0.9, iterations=120)  # fmt: skip
        adapt_all(library, (1, 2, 3, 4))
        library.assigned(stored_assignment(offer, 5))
        library.remove(request_id(2), "boss", "a fish")
        yield library


def many(known: Entry, count: int) -> list[Entry]:
    """As many entries, told apart by their names and places."""
    return [
        replace(known, entry=request_id(10_000 + place), position=place) for place in range(1, count + 1)
    ]


def plain(entries) -> list[Entry]:
    """Entries without their places."""
    return [replace(entry, position=0) for entry in entries]


# What there is


def test_facts_are_those_of_the_signature_and_the_mask(source, offer):
    task = stored_assignment(offer, 3)
    mask = contribution(offer, 3).mask
    entry = source.entry(request_id(3))
    assert source.facts_of(request_id(3)) == EntryFacts(
        entry=request_id(3),
        position=4,
        method="mvp",
        contributor="device-3",
        recorded=entry.recorded,
        classes=2,
        images=int(task.description.signature.counts.sum()),
        units=int(mask.kept.sum()),
        parameters=offer.structure.parameters(mask.counts, 2),
        accuracy_before=0.1,
        accuracy_after=0.75,
        iterations=25,
        neighbours=task.neighbours,
        removed=None,
    )


def test_all_facts_are_those_of_each_in_the_order_of_recording(source):
    facts = list(source.facts())
    assert [fact.position for fact in facts] == [1, 2, 3, 4, 5]
    assert facts == [source.facts_of(fact.entry) for fact in facts]
    assert [fact.removed is not None for fact in facts] == [False, False, True, False, False]


def test_what_is_exported_is_all_that_votes(source):
    exported = list(source.export())
    assert exported == [entry for entry in source.entries() if entry.entry != request_id(2)]


@pytest.mark.parametrize("count", [0, PAGE_ENTRIES - 1, PAGE_ENTRIES, 2 * PAGE_ENTRIES + 3])
def test_entries_are_the_same_however_many_pages_they_fill(source, library, count):
    assert library.take_in(many(source.entry(request_id(1)), count)) == (count, 0)
    for number in range(0, count, 50):
        library.remove(request_id(10_001 + number), "boss", "a fish")
    facts, exported = list(library.facts()), list(library.export())
    assert [fact.position for fact in facts] == list(range(1, count + 1))
    assert [fact.entry for fact in facts if fact.removed is None] == [entry.entry for entry in exported]
    assert len(exported) == count - len(range(0, count, 50))


@pytest.mark.parametrize("signatures", [0.5, 1, 2, 2.5])
def test_a_page_of_large_signatures_holds_no_more_of_them_than_its_bytes(
    source, library, monkeypatch, signatures
):
    """Where so many of the signatures fill a page, as those of a thousand classes do."""
    known = source.entry(request_id(1))
    pages: list[int] = []

    def counted(connection, names):
        pages.append(len(names))
        return standing(connection, names)

    monkeypatch.setattr(library_contents, "standing", counted)
    monkeypatch.setattr(library_contents, "PAGE_BYTES", int(known.signature.means.nbytes * signatures))
    assert library.take_in(many(known, 7)) == (7, 0)
    assert [fact.position for fact in library.facts()] == [1, 2, 3, 4, 5, 6, 7]
    assert sum(pages) == 7
    assert max(pages) == math.ceil(signatures)


def test_whoever_reads_slowly_holds_nobody_up(source, library):
    """Writers go on, the log does not grow, and what is recorded meanwhile is still read."""
    library.take_in(many(source.entry(request_id(1)), PAGE_ENTRIES + 1))
    reading = library.export()
    first = next(reading)
    assert adapt(library, 6).entries == PAGE_ENTRIES + 2
    library.remove(request_id(10_000 + PAGE_ENTRIES + 1), "boss", "a fish")
    with library.file.reading() as connection:
        busy, _, _ = connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").one()
    assert busy == 0
    names = [first.entry, *(entry.entry for entry in reading)]
    assert len(names) == PAGE_ENTRIES + 1
    assert names[-1] == request_id(6)


def test_a_damaged_entry_is_in_no_list_and_the_others_are(source):
    change(source.path, "UPDATE tasks SET accuracy_after = 1 WHERE position = 4")
    assert [fact.position for fact in source.facts()] == [1, 2, 3, 5]
    assert [entry.position for entry in source.export()] == [1, 2, 5]
    for ask in (source.facts_of, source.entry):
        with pytest.raises(LibraryError, match="damaged"):
            ask(request_id(3))
    assert source.damaged == (request_id(3),)


def test_statistics_are_counts_and_means_over_what_votes(source):
    """Devices 1, 3, 4 and 6 gained from 0.1 to n / (n + 1); the seed from 0.2 to 0.9."""
    source.remove(request_id(4), "boss", "a fish")
    source.restore(request_id(4), "boss", "a bird")
    source.assigned(replace(stored_assignment(source.offer, 6), contributor="device-1"))
    source.record(contribution(source.offer, 6))
    statistics = source.statistics()
    assert (statistics.voting, statistics.removed, statistics.unanswered) == (5, 1, 1)
    assert statistics.by_method == {"iterative": 1, "mvp": 4}
    assert statistics.by_contributor == {"operator": 1, "device-1": 2, "device-3": 1, "device-4": 1}
    assert statistics.accuracy_before == pytest.approx((0.2 + 4 * 0.1) / 5)
    assert statistics.accuracy_after == pytest.approx((0.9 + 1 / 2 + 3 / 4 + 4 / 5 + 6 / 7) / 5)
    assert statistics.file_bytes == source.path.stat().st_size > 100_000


def test_statistics_of_an_empty_library_are_zeros(library):
    statistics = library.statistics()
    assert (statistics.voting, statistics.removed, statistics.unanswered) == (0, 0, 0)
    assert (statistics.by_method, statistics.by_contributor) == ({}, {})
    assert (statistics.accuracy_before, statistics.accuracy_after) == (0, 0)


@pytest.fixture
def sums():
    """One item for each time that the accuracies of entries were summed."""
    made: list[str] = []

    def note(_connection, _cursor, statement: str, *_) -> None:
        if "sum(" in statement:
            made.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    yield made
    event.remove(Engine, "before_cursor_execute", note)


def test_entries_are_summed_again_only_once_they_changed(source, sums):
    """To sum them is to read the whole file, and metrics are asked for all day."""
    first = source.statistics()
    assert source.statistics() == first
    assert len(sums) == 1
    source.assigned(stored_assignment(source.offer, 6))
    assert source.statistics().unanswered == first.unanswered + 1
    assert len(sums) == 1


@pytest.mark.parametrize(
    "decide",
    [
        lambda library: library.record(contribution(library.offer, 5)),
        lambda library: library.take_in([replace(library.entry(request_id(1)), entry=request_id(9))]),
        lambda library: library.remove(request_id(3), "boss", "a fish"),
        lambda library: library.restore(request_id(2), "boss", "a bird"),
    ],
    ids=["records", "takes in", "removes", "restores"],
)
def test_numbers_follow_what_another_process_does(source, sums, decide):
    """Which has its own connection, and its own numbers."""
    before = source.statistics()
    with Library.open(source.path) as other:
        decide(other)
    after = source.statistics()
    assert len(sums) == 2
    assert after.by_contributor != before.by_contributor
    with Library.open(source.path) as fresh:
        assert fresh.statistics() == after


# What is taken in


def copy(source: Operations, target: Operations) -> tuple[int, int]:
    """As an operator would, with either library anywhere."""
    return target.take_in(source.export())


def test_what_is_exported_from_one_library_is_taken_in_by_another_as_it_was(source, library):
    """Only places are anew: the removed entry is not there. Doing it again changes nothing."""
    assert copy(source, library) == (4, 0)
    assert plain(library.entries()) == plain(source.export())
    assert [entry.position for entry in library.entries()] == [1, 2, 3, 4]
    assert copy(source, library) == (0, 4)
    assert copy(library, source) == (0, 4)
    assert len(library) == 4


def test_what_is_taken_in_is_not_recorded_anew_by_its_device(source, library, offer):
    """It is told as if this library had assigned it: the receipt, or that the first stays."""
    copy(source, library)
    assert library.record(contribution(offer, 3), "device-3") == Receipt(request_id(3), 3)
    with pytest.raises(InputError, match="the first stays"):
        library.record(contribution(offer, 3, draw=1))
    assert library.assignment_of(request_id(3)) is None


def test_an_earlier_copy_of_a_library_takes_in_what_was_recorded_since(source, library, offer):
    library.assigned(stored_assignment(offer, 3))
    assert copy(source, library) == (4, 0)
    assert plain(library.entries()) == plain(source.export())
    assert library.assignment_of(request_id(3)) == stored_assignment(offer, 3)


def test_a_removed_entry_that_is_taken_in_again_stays_removed(source):
    removed = source.entry(request_id(2))
    assert source.take_in([removed]) == (0, 1)
    assert source.facts_of(request_id(2)).removed is not None


@pytest.mark.parametrize(
    "change",
    [
        {"accuracy_after": 0.7},
        {"iterations": 24},
        {"contributor": "somebody"},
        {"method": "smsp"},
        {"neighbours": ()},
        {"recorded": datetime(2020, 1, 1, tzinfo=UTC)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_an_entry_that_differs_is_refused_and_those_before_it_stay(source, library, offer, change):
    entries = list(source.export())
    library.take_in(entries[2:3])
    kept = library.entries()
    changed = [*entries[:2], replace(entries[2], **change), entries[3]]
    with pytest.raises(InputError, match=f"{request_id(3)} differs"):
        library.take_in(changed)
    assert library.entries() == [*kept, *(replace(e, position=1 + e.position) for e in entries[:2])]


@pytest.mark.parametrize(
    "change", [{"contributor": "somebody"}, {"neighbours": ()}, {"method": "iterative"}]
)
def test_what_was_assigned_to_another_task_is_refused(source, library, offer, change):
    library.assigned(stored_assignment(offer, 3))
    with pytest.raises(InputError, match="differs"):
        library.take_in([replace(source.entry(request_id(3)), **change)])
    assert len(library) == 0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"entry": "x"}, "32 hexadecimal digits"),
        ({"entry": "\uff10" * 32}, "32 hexadecimal digits"),
        ({"accuracy_before": 1.1}, "accuracy_before"),
        ({"accuracy_after": float("nan")}, "accuracy_after"),
        ({"iterations": -1}, "iterations"),
        ({"method": "magic"}, "method is 'magic'"),
        ({"contributor": "x" * 201}, "201 characters"),
        ({"neighbours": (Neighbour("x" * 300, 0.5),)}, "300 characters"),
        ({"recorded": datetime(2026, 1, 1)}, "no time zone"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_entry_that_breaks_a_rule_is_refused_and_those_before_it_stay(source, library, change, told):
    sound, other = source.entry(request_id(1)), source.entry(request_id(3))
    with pytest.raises(InputError, match=told):
        library.take_in([sound, replace(other, **change)])
    assert plain(library.entries()) == plain([sound])


def test_entries_of_another_library_are_refused(source, library, offer):
    sound = source.entry(request_id(1))
    smaller = offer.structure.without({offer.structure.groups[0].name: "for the test"})
    with pytest.raises(MismatchError, match="structure"):
        library.take_in([replace(sound, mask=Mask.full(smaller))])
    with pytest.raises(MismatchError, match="probe"):
        library.take_in([replace(sound, signature=replace(sound.signature, probe="0" * 64))])
    assert len(library) == 0


def test_a_time_is_kept_in_whichever_zone_it_is_told(source, library):
    recorded = datetime(2026, 3, 1, 1, 30, tzinfo=timezone(timedelta(hours=5, minutes=45)))
    entry = replace(source.entry(request_id(1)), recorded=recorded)
    assert library.take_in([entry]) == (1, 0)
    assert library.entry(request_id(1)).recorded == recorded
    assert library.take_in([replace(entry, recorded=recorded.astimezone(UTC))]) == (0, 1)


def test_where_the_sender_gives_up_what_came_before_stays_and_it_goes_on_from_there(source, library):
    entries = many(source.entry(request_id(1)), 2 * PAGE_ENTRIES + 10)

    def broken(count: int) -> Iterator[Entry]:
        yield from itertools.islice(entries, count)
        raise ConnectionError("gone")

    for count in (PAGE_ENTRIES // 2, PAGE_ENTRIES + 7):
        with pytest.raises(ConnectionError):
            library.take_in(broken(count))
        assert len(library) == count
    assert library.take_in(entries) == (PAGE_ENTRIES + 3, PAGE_ENTRIES + 7)
    assert plain(library.entries()) == plain(entries)


def test_nothing_is_locked_while_entries_are_waited_for(source, library):
    entries = many(source.entry(request_id(1)), PAGE_ENTRIES + 1)

    def slow() -> Iterator[Entry]:
        yield from entries
        adapt(library, 9)

    assert library.take_in(slow()) == (PAGE_ENTRIES + 1, 0)
    assert library.entry(request_id(9)).position == PAGE_ENTRIES + 1
