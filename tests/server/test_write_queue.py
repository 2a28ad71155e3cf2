"""Writers share transactions: each is told of its own change, and only once it is committed."""

import sqlite3
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event

import pytest
from sqlalchemy import event, text

from common.errors import InputError, LibraryError
from server.library_file import connect
from server.write_queue import MAX_SHARED, WriteQueue


class Numbers:
    """A table of numbers that are written through a queue, and counts of what that took."""

    def __init__(self, path):
        self._path = path
        self._engine = connect(path, create=True)
        self.transactions = 0
        self.fail_to_commit = False
        with self._engine.begin() as connection:
            connection.execute(text("CREATE TABLE numbers (number INTEGER PRIMARY KEY)"))
        event.listen(self._engine, "commit", self._commit)
        self.queue = WriteQueue(self._begin)

    @contextmanager
    def _begin(self):
        self.transactions += 1
        with self._engine.execution_options(writes=True).begin() as connection:
            yield connection

    def _commit(self, connection):
        if self.fail_to_commit:
            raise OSError("the disk is gone")

    def write(self, number: int) -> int:
        """The number, once another connection can read it."""
        self.queue.write(lambda connection: _insert(connection, number))
        assert number in self.written()
        return number

    def written(self) -> set[int]:
        other = sqlite3.connect(self._path)
        found = {number for (number,) in other.execute("SELECT number FROM numbers")}
        other.close()
        return found

    @contextmanager
    def held(self, pool: ThreadPoolExecutor):
        """Keeps a transaction open while the context lasts; gives what becomes of its change, -1."""
        begun, released = Event(), Event()

        def hold(connection):
            begun.set()
            released.wait()
            return _insert(connection, -1)

        future = pool.submit(self.queue.write, hold)
        begun.wait()
        try:
            yield future
        finally:
            released.set()

    def wait_for(self, count: int) -> None:
        """Until so many changes wait."""
        while len(self.queue._waiting) < count:
            pass

    def close(self):
        self._engine.dispose()


def _insert(connection, number: int) -> int:
    connection.execute(text("INSERT INTO numbers VALUES (:number)"), {"number": number})
    return number


@pytest.fixture
def numbers(tmp_path):
    numbers = Numbers(tmp_path / "numbers.db")
    yield numbers
    numbers.close()


def test_what_waits_while_one_is_written_is_written_together(numbers):
    with ThreadPoolExecutor(41) as pool:
        with numbers.held(pool):
            waiting = [pool.submit(numbers.write, number) for number in range(40)]
            numbers.wait_for(40)
        assert [future.result() for future in waiting] == list(range(40))
    assert numbers.transactions == 2
    assert numbers.written() == {-1, *range(40)}


def test_no_transaction_is_longer_than_its_limit(numbers):
    count = 2 * MAX_SHARED + 1
    with ThreadPoolExecutor(count + 1) as pool:
        with numbers.held(pool):
            waiting = [pool.submit(numbers.write, number) for number in range(count)]
            numbers.wait_for(count)
        assert {future.result() for future in waiting} == set(range(count))
    assert numbers.transactions == 1 + 3


def test_changes_are_made_in_the_order_they_came(numbers):
    order = []
    with ThreadPoolExecutor(21) as pool, numbers.held(pool):
        for number in range(20):
            pool.submit(numbers.queue.write, lambda connection, number=number: order.append(number))
            numbers.wait_for(number + 1)
    assert order == list(range(20))


def test_a_change_that_fails_is_undone_alone(numbers):
    """After it has written, between others of its transaction."""

    def fail(connection):
        _insert(connection, 1000)
        raise InputError("not this one")

    with ThreadPoolExecutor(8) as pool:
        with numbers.held(pool) as first:
            before, bad, after = (
                pool.submit(numbers.write, 1),
                pool.submit(numbers.queue.write, fail),
                pool.submit(numbers.write, 2),
            )
            numbers.wait_for(3)
        with pytest.raises(InputError, match="not this one"):
            bad.result()
        assert (first.result(), before.result(), after.result()) == (-1, 1, 2)
    assert numbers.written() == {-1, 1, 2}


def test_where_the_transaction_fails_all_in_it_do_and_the_next_goes_on(numbers):
    with ThreadPoolExecutor(4) as pool:
        numbers.fail_to_commit = True
        with numbers.held(pool) as first:
            others: list[Future] = [pool.submit(numbers.queue.write, lambda c: None) for _ in range(2)]
            numbers.wait_for(2)
        for future in (first, *others):
            with pytest.raises(OSError, match="the disk is gone"):
                future.result()
        numbers.fail_to_commit = False
    assert numbers.written() == set()
    assert numbers.write(5) == 5


def test_a_writer_that_is_ended_while_it_leads_leaves_the_others_told_and_the_queue_at_work(numbers):
    def interrupted(connection):
        raise KeyboardInterrupt

    with ThreadPoolExecutor(4) as pool:
        with numbers.held(pool):
            leader = pool.submit(numbers.queue.write, interrupted)
            numbers.wait_for(1)
            other = pool.submit(numbers.queue.write, lambda connection: _insert(connection, 1))
            numbers.wait_for(2)
        with pytest.raises(KeyboardInterrupt):
            leader.result()
        with pytest.raises(LibraryError, match="repeat it"):
            other.result()
    assert numbers.written() == {-1}
    assert numbers.write(1) == 1


def test_a_hundred_threads_lose_nothing(numbers):
    with ThreadPoolExecutor(100) as pool:
        assert set(pool.map(numbers.write, range(1000))) == set(range(1000))
    assert numbers.written() == set(range(1000))
    assert numbers.transactions < 1000
