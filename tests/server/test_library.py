"""The library: what is acknowledged stays, what is damaged is told, and nothing else is served."""

import multiprocessing
import os
import random
import shutil
import sqlite3
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from random_tasks import random_mask, random_signature
from sqlalchemy import create_engine, event
from sqlalchemy.pool import Pool

from common.errors import InputError, LibraryError, MismatchError
from common.exchange import Budget, Contribution, Neighbour, Offer, Receipt, TaskDescription
from common.mask import Mask
from server.library import Entry, Library, StoredAssignment, seed_entry

WEIGHTS_DIGEST = "ab" * 32
INJECTION = "'); DROP TABLE tasks; --"
NOBODY = 65534

# Its children start in milliseconds, and without this process's threads and open files.
clean_processes = multiprocessing.get_context("forkserver")
clean_processes.set_forkserver_preload(["server.library"])


def request_id(number: int) -> str:
    return f"{number:032x}"


def stored_assignment(offer: Offer, number: int) -> StoredAssignment:
    """What the device of that number asks and is assigned."""
    generator = np.random.default_rng(number)
    signature = random_signature(offer.probe, generator, classes=2 + number % 3)
    mask = random_mask(offer.structure, generator)
    return StoredAssignment(
        TaskDescription(request_id(number), signature, Budget(keep_ratio=0.3, headroom=1.5), "mvp"),
        origin="vote",
        target=tuple(max(1, count // 2) for count in mask.counts),
        rounds=3,
        mask=mask,
        neighbours=(Neighbour(request_id(901), 0.75), Neighbour(request_id(902), 1 / 3)),
        contributor=f"device {number}",
    )


def contribution(offer: Offer, number: int) -> Contribution:
    """What the device of that number gives back."""
    mask = random_mask(offer.structure, np.random.default_rng(1000 + number), keep_ratio=0.25)
    return Contribution(request_id(number), mask, 0.1, number / (number + 1), 25)


def adapt(library: Library, number: int) -> Receipt:
    """Everything that a device does with the library."""
    library.assigned(stored_assignment(library.offer, number))
    return library.record(contribution(library.offer, number))


def adapt_all(library: Library, numbers: Iterable[int]) -> None:
    for number in numbers:
        adapt(library, number)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "library.db"


@pytest.fixture
def library(path, offer):
    with Library.create(path, offer, WEIGHTS_DIGEST) as library:
        yield library


@pytest.fixture(scope="module")
def shared_library(offer, tmp_path_factory):
    with Library.create(
        tmp_path_factory.mktemp("shared") / "library.db", offer, WEIGHTS_DIGEST
    ) as library:
        yield library


@pytest.fixture(scope="module")
def stocked_file(offer, tmp_path_factory) -> Path:
    """A closed library of five entries, and a sixth task that is assigned."""
    path = tmp_path_factory.mktemp("stocked") / "library.db"
    with Library.create(path, offer, WEIGHTS_DIGEST) as library:
        adapt_all(library, range(5))
        library.assigned(stored_assignment(offer, 5))
    return path


@pytest.fixture
def stocked(stocked_file, path) -> Path:
    """A copy of that file, to be damaged."""
    shutil.copy(stocked_file, path)
    return path


@pytest.fixture
def at_checkout():
    """SQL that runs on every connection which any library is about to use."""
    statements: list[str] = []

    def run(connection, *_):
        for statement in statements:
            connection.execute(statement)

    event.listen(Pool, "checkout", run)
    yield statements
    event.remove(Pool, "checkout", run)


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
        contributor="device 7",
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
    Budget, parameters=st.integers(1, 2**63 - 1)
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
    later = replace(stored_assignment(offer, 2), description=first.description)
    assert library.assigned(first) == first
    assert library.assigned(later) == first
    assert library.assignment_of(request_id(1)) == first
    assert library.assignment_of(request_id(2)) is None


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
        change = {"mask": Mask.full(offer.structure)}
    with pytest.raises(InputError, match="the first stays"):
        library.record(replace(contribution(offer, 1), **change))
    assert library.entries() == kept


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


# Many at once, and a death at any moment


def test_sixteen_threads_lose_nothing_and_see_no_lock(library, path, offer):
    """Through two libraries on one file, as two processes would have."""
    with Library.open(path) as other, ThreadPoolExecutor(16) as threads:
        receipts = list(threads.map(lambda n: adapt((library, other)[n % 2], n), range(64)))
    assert {receipt.entry for receipt in receipts} == {request_id(number) for number in range(64)}
    by_position = sorted(receipts, key=lambda receipt: receipt.entries)
    assert [receipt.entries for receipt in by_position] == list(range(1, 65))
    assert [entry.entry for entry in library.entries()] == [receipt.entry for receipt in by_position]


def test_one_request_from_many_threads_has_one_answer_and_one_row(library, offer):
    description = stored_assignment(offer, 1).description

    def ask(number: int) -> tuple[StoredAssignment, Receipt]:
        own_vote = replace(stored_assignment(offer, number), description=description)
        return library.assigned(own_vote), library.record(contribution(offer, 1))

    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(ask, range(16)))
    assert set(answers) == {(library.assignment_of(request_id(1)), Receipt(request_id(1), 1))}
    assert len(library) == 1


def test_every_connection_syncs_its_commits_and_waits_for_locks(path, offer):
    found = []

    def look(connection, *_):
        pragmas = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        found.append([connection.execute(f"PRAGMA {name}").fetchone()[0] for name in pragmas])

    event.listen(Pool, "checkout", look)
    try:
        with Library.create(path, offer, WEIGHTS_DIGEST) as library:
            adapt(library, 1)
    finally:
        event.remove(Pool, "checkout", look)
    full = 2
    assert len(found) >= 4
    assert all(values == ["wal", full, 1, 30_000] for values in found)


def adapt_forever(path: Path, start: int, acknowledged: Connection) -> None:
    """A server's life in a process of its own: tells every entry once it is acknowledged."""
    with Library.open(path) as library:
        for number in range(start, start + 100_000):
            acknowledged.send(adapt(library, number).entry)


def left_in(reader: Connection) -> Iterator[str]:
    with suppress(EOFError):
        while True:
            yield reader.recv()


def test_kill_9_loses_nothing_that_was_acknowledged(library, path):
    """Ten writers killed one after the other, each within a record's time after a random one."""
    library.close()
    moment = random.Random(0)
    acknowledged: list[str] = []
    for life in range(10):
        reader, writer = clean_processes.Pipe(duplex=False)
        process = clean_processes.Process(target=adapt_forever, args=(path, 1000 * life, writer))
        process.start()
        writer.close()
        acknowledged += [reader.recv() for _ in range(moment.randint(1, 20))]
        process.join(timeout=moment.uniform(0, 0.01))
        process.kill()
        process.join()
        acknowledged += left_in(reader)
        with Library.open(path) as survivor:
            held = [entry.entry for entry in survivor.entries()]
            assert set(acknowledged) <= set(held)
            assert len(held) - len(acknowledged) <= life + 1, "at most one unacknowledged a life"
            assert survivor.damaged == ()


# Damage is told, and nothing false is served


def overwritten(path: Path, start: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(start)
        file.write(data)


def change(path: Path, statement: str, *values: object) -> None:
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(statement, values)
    connection.close()


FIX_IT = "restore the file|create it|allow this user|use the version|check its path"


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda path: path.unlink(), id="missing"),
        pytest.param(lambda path: path.write_bytes(b""), id="empty"),
        pytest.param(lambda path: path.write_text("keep ratio, accuracy\n" * 99), id="text"),
        pytest.param(lambda path: (path.unlink(), path.mkdir()), id="directory"),
        pytest.param(lambda path: overwritten(path, 0, bytes(100)), id="magic overwritten"),
        pytest.param(lambda path: overwritten(path, 16, b"\xff" * 84), id="header overwritten"),
        pytest.param(lambda path: overwritten(path, 4096, b"\xa5" * 4096), id="page overwritten"),
        pytest.param(lambda path: os.truncate(path, 3 * 4096), id="truncated"),
        pytest.param(lambda path: os.truncate(path, 50), id="truncated in the header"),
        pytest.param(lambda path: change(path, "DROP TABLE header"), id="no library"),
        pytest.param(lambda path: change(path, "DELETE FROM header"), id="no header row"),
        pytest.param(lambda path: change(path, "UPDATE header SET structure = '{}'"), id="structure"),
        pytest.param(lambda path: change(path, "UPDATE header SET probe = x'00'"), id="probe"),
        pytest.param(
            lambda path: change(path, "UPDATE header SET structure = replace(structure, ':5,', ':6,')"),
            id="a number that no digest covers",
        ),
        pytest.param(lambda path: change(path, "UPDATE header SET format = 2"), id="of the future"),
    ],
)
def test_a_file_that_is_no_sound_library_is_refused_in_one_sentence(stocked, damage):
    damage(stocked)
    with pytest.raises(LibraryError, match=FIX_IT) as refusal:
        Library.open(stocked)
    assert str(stocked) in str(refusal.value)
    assert not list(stocked.parent.glob(".*"))


def test_a_flipped_bit_anywhere_is_told_or_changes_nothing_that_is_served(stocked_file, path):
    """Half of the bits are in the pages behind the probe, which fills most of the file."""
    sound = stocked_file.read_bytes()
    with Library.open(stocked_file) as library:
        true_entries = {entry.entry: entry for entry in library.entries()}
        true_assignment = library.assignment_of(request_id(5))
    place = random.Random(0)
    told = 0
    for round_ in range(150):
        at = place.randrange(len(sound) - 8 * 4096 if round_ % 2 else 0, len(sound))
        flipped = sound[at] ^ 1 << place.randrange(8)
        path.write_bytes(sound[:at] + bytes([flipped]) + sound[at + 1 :])
        try:
            with Library.open(path) as library:
                damaged, served = set(library.damaged), library.entries()
                if request_id(5) not in damaged:
                    assert library.assignment_of(request_id(5)) == true_assignment
        except LibraryError:
            told += 1
            continue
        told += bool(damaged)
        assert all(entry == true_entries[entry.entry] for entry in served)
        assert {entry.entry for entry in served} == set(true_entries) - damaged
    assert told > 50


def test_a_damaged_task_is_listed_and_not_served_and_the_rest_works(stocked, offer):
    """The third mask loses a bit, the sixth task's name is no text any more."""
    change(stocked, "UPDATE tasks SET mask = x'01' || substr(mask, 2) WHERE position = 3")
    change(stocked, "UPDATE tasks SET contributor = CAST(x'ff' AS TEXT) WHERE position IS NULL")
    with Library.open(stocked) as library:
        assert library.damaged == (request_id(2), request_id(5))
        assert [entry.position for entry in library.entries()] == [1, 2, 4, 5]
        for serve in (library.entry, library.assignment_of):
            with pytest.raises(LibraryError, match=f"{request_id(2)} is damaged"):
                serve(request_id(2))
        with pytest.raises(LibraryError, match=f"{request_id(5)} is damaged"):
            library.record(contribution(offer, 5))
        assert adapt(library, 6).entries == len(library) == 6


# A full disk, a file that may not be written, a lock that stays


@pytest.mark.parametrize(
    ("hinder", "release", "told"),
    [
        ("PRAGMA max_page_count = 1", "PRAGMA max_page_count = 1000000", "disk is full.*free some space"),
        ("PRAGMA query_only = ON", "PRAGMA query_only = OFF", "may not be written.*allow this user"),
    ],
    ids=["disk full", "read-only"],
)
def test_what_cannot_be_written_is_told_and_works_once_it_can(
    stocked, offer, at_checkout, hinder, release, told
):
    """SQLite's own errors: it refuses pages beyond a count, and changes on a query-only connection."""
    with Library.open(stocked) as library:
        kept = library.entries()
        at_checkout[:] = [hinder]
        with pytest.raises(LibraryError, match=told) as refusal:
            adapt_all(library, range(6, 40))
        assert str(stocked) in str(refusal.value)
        held = library.entries()
        assert held[: len(kept)] == kept
        at_checkout[:] = [release]
        adapt_all(library, range(6, 40))
        assert library.entries()[: len(held)] == held
        assert len(library) == 5 + 34
    with Library.open(stocked) as library:
        assert (len(library), library.damaged) == (39, ())


def test_a_lock_that_another_process_keeps_is_told(library, path, offer, at_checkout):
    at_checkout.append("PRAGMA busy_timeout = 1")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(LibraryError, match=r"locked.*try again"):
        adapt(library, 1)
    other.execute("COMMIT")
    other.close()
    assert adapt(library, 1).entries == 1


def refusal_as_nobody(use: Callable[[Path], object], path: Path, answer: Connection) -> None:
    """Sends what the library tells a user who may do only what a file's mode says."""
    create_engine("sqlite://").connect().close()  # loaded now: nobody may not read the modules
    if os.geteuid() == 0:
        os.setuid(NOBODY)
    try:
        answer.send(f"done: {use(path)}")
    except LibraryError as error:
        answer.send(str(error))


def opened(path: Path) -> int:
    with Library.open(path) as library:
        return len(library)


def adapted(path: Path) -> Receipt:
    with Library.open(path) as library:
        return adapt(library, 6)


@pytest.mark.parametrize(
    ("use", "mode"), [(opened, 0o000), (adapted, 0o444)], ids=["unreadable", "read-only"]
)
def test_a_file_without_permission_is_refused_and_left_as_it_was(stocked_file, use, mode):
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "library.db"
        shutil.copy(stocked_file, path)
        path.chmod(mode)
        os.chmod(directory, 0o755)
        reader, writer = clean_processes.Pipe(duplex=False)
        process = clean_processes.Process(target=refusal_as_nobody, args=(use, path, writer))
        process.start()
        writer.close()
        told = reader.recv()
        process.join()
        assert str(path) in told
        assert "permission" in told or "allow this user" in told
        path.chmod(0o600)
        assert path.read_bytes() == stocked_file.read_bytes()


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
