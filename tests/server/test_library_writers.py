"""Many writers of one library, and the death of any of them at any moment."""

import random
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Event

import pytest
from library_tasks import (
    WEIGHTS_DIGEST,
    adapt,
    adapt_all,
    clean_processes,
    contribution,
    request_id,
    stored_assignment,
)
from sqlalchemy import event
from sqlalchemy.pool import Pool

from common.errors import InputError
from common.exchange import Neighbour, Receipt
from server import tokens
from server.library import Library, StoredAssignment

# Many at once, and a death at any moment


def adapted_elsewhere(path: Path, numbers: range, answer: Connection) -> None:
    with Library.open(path) as library:
        answer.send("ready")
        answer.send([adapt(library, number) for number in numbers])


def test_threads_of_two_processes_lose_nothing_and_see_no_lock(library, path):
    """Thirty-two threads through two libraries on one file, and another process beside them."""
    reader, writer = clean_processes.Pipe(duplex=False)
    process = clean_processes.Process(target=adapted_elsewhere, args=(path, range(96, 128), writer))
    process.start()
    writer.close()
    assert reader.recv() == "ready"
    with Library.open(path) as other, ThreadPoolExecutor(32) as threads:
        receipts = list(threads.map(lambda n: adapt((library, other)[n % 2], n), range(96)))
    receipts += reader.recv()
    process.join()
    assert {receipt.entry for receipt in receipts} == {request_id(number) for number in range(128)}
    by_position = sorted(receipts, key=lambda receipt: receipt.entries)
    assert [receipt.entries for receipt in by_position] == list(range(1, 129))
    assert [entry.entry for entry in library.entries()] == [receipt.entry for receipt in by_position]


def opened_and_closed(path: Path) -> None:
    Library.open(path).close()


def test_a_library_that_is_opened_twice_in_a_process_keeps_its_log_when_another_process_ends(
    path, library
):
    """It ends as the last that has the file open, and takes the log away, if it finds no lock of ours."""
    Library.open(path).close()
    adapt(library, 1)
    process = clean_processes.Process(target=opened_and_closed, args=(path,))
    process.start()
    process.join()
    assert path.with_name("library.db-wal").stat().st_nlink == 1
    adapt(library, 2)
    shutil.copy(path, path.with_name("copy.db"))
    shutil.copy(path.with_name("library.db-wal"), path.with_name("copy.db-wal"))
    with Library.open(path.with_name("copy.db")) as copy:
        assert len(copy) == 2


def test_one_request_from_many_threads_has_one_answer_and_one_row(library, offer):
    """Of as many votes, each with another neighbour, one is stored."""
    first = stored_assignment(offer, 1)

    def ask(number: int) -> tuple[StoredAssignment, Receipt]:
        own_vote = replace(first, neighbours=(Neighbour(request_id(number), 0.5),))
        return library.assigned(own_vote), library.record(contribution(offer, 1))

    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(ask, range(16)))
    assert set(answers) == {(library.assignment_of(request_id(1)), Receipt(request_id(1), 1))}
    assert len(library) == 1


def test_of_two_contributions_to_one_request_at_the_same_moment_the_first_stays(library, offer):
    """All are read as new, as another writer holds them up; then one is stored, and another refused."""
    library.assigned(stored_assignment(offer, 1))
    held, released = Event(), Event()
    with ThreadPoolExecutor(4) as threads:
        threads.submit(library.file.write, lambda connection: (held.set(), released.wait()))
        held.wait()
        given = [contribution(offer, 1), contribution(offer, 1), contribution(offer, 1, draw=1)]
        answers = [threads.submit(library.record, one) for one in given[:2]]
        while len(library.file._writes._waiting) < 2:
            pass
        late = threads.submit(library.record, given[2])
        while len(library.file._writes._waiting) < 3:
            pass
        released.set()
        assert [answer.result() for answer in answers] == [Receipt(request_id(1), 1)] * 2
        with pytest.raises(InputError, match="the first stays"):
            late.result()
    assert library.entry(request_id(1)).mask == given[0].mask
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


def left_in(reader: Connection) -> Iterator:
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


def operate_forever(path: Path, start: int, acknowledged: Connection) -> None:
    """An operator's life: each step on an entry or a name of its own, told of once it is done."""
    with Library.open(path) as library:
        for number in range(start, start + 100_000, 10):
            adapt_all(library, (number, number + 1, number + 2))
            library.remove(request_id(number), "boss", "a fish")
            acknowledged.send(("removed", request_id(number)))
            library.remove(request_id(number + 1), "boss", "a fish")
            library.restore(request_id(number + 1), "boss", "no fish")
            acknowledged.send(("votes", request_id(number + 1)))
            acknowledged.send(("lets in", tokens.add(library, f"t{number}", "operator")))
            revoked = tokens.add(library, f"device-{number + 2}", "device")
            tokens.revoke(library, f"device-{number + 2}", remove_entries=True)
            acknowledged.send(("lets nobody in", revoked))
            acknowledged.send(("removed", request_id(number + 2)))
            known = library.entry(request_id(number + 1))
            copies = [replace(known, entry=request_id(number + place)) for place in (3, 4, 5)]
            library.take_in(copies)
            for copy in copies:
                acknowledged.send(("votes", copy.entry))


def holds(library: Library, what: str, of: str) -> bool:
    """Whether what was acknowledged is so."""
    if what in ("lets in", "lets nobody in"):
        return (tokens.identify(library, of) is not None) == (what == "lets in")
    return (library.facts_of(of).removed is not None) == (what == "removed")


def test_kill_9_of_an_operator_leaves_a_sound_file_and_all_that_was_acknowledged(library, path):
    library.close()
    moment = random.Random(0)
    acknowledged: list[tuple[str, str]] = []
    for life in range(10):
        reader, writer = clean_processes.Pipe(duplex=False)
        process = clean_processes.Process(target=operate_forever, args=(path, 1_000_000 * life, writer))
        process.start()
        writer.close()
        acknowledged += [reader.recv() for _ in range(moment.randint(1, 12))]
        process.join(timeout=moment.uniform(0, 0.02))
        process.kill()
        process.join()
        acknowledged += left_in(reader)
        with Library.open(path) as survivor:
            assert all(holds(survivor, *fact) for fact in acknowledged)
            assert survivor.damaged == ()
            assert [facts.position for facts in survivor.facts()] == list(range(1, len(survivor) + 1))
            votes = {entry.entry for entry in survivor.export()}
            for number in range(1_000_000 * life, 1_000_000 * life + 1000, 10):
                copies = {request_id(number + place) for place in (3, 4, 5)}
                assert votes & copies in (set(), copies), "entries are taken in by whole pages"
