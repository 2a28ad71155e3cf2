"""The spool: payloads are made once, read from the disk, and deleted when they take too much room."""

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from common.errors import InputError, LibraryError
from server.spool import Spool


@pytest.fixture
def spool(tmp_path):
    return Spool(tmp_path, memory_bytes=100)


def test_a_payload_is_announced_as_it_is_and_read_from_anywhere(spool):
    with spool.open("a", lambda: b"0123456789") as payload:
        assert (payload.announced.size, payload.announced.sha256) == (
            10,
            hashlib.sha256(b"0123456789").hexdigest(),
        )
        assert payload.read(0, 4) == b"0123"
        assert payload.read(8, 4) == b"89"
        assert payload.read(10, 4) == b""


def test_many_who_ask_at_once_have_it_made_once(spool):
    made, everybody = [], threading.Barrier(8)

    def make() -> bytes:
        made.append(1)
        return b"x" * 10

    def read(_: int) -> bytes:
        everybody.wait()
        with spool.open("a", make) as payload:
            return payload.read(0, 100)

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(read, range(8))) == [b"x" * 10] * 8
    assert len(made) == 1


def keep(spool: Spool, key: str, size: int) -> None:
    """Have a payload made that nobody reads any more."""
    spool.open(key, lambda: key.encode() * size).close()


def is_there(spool: Spool, key: str) -> bool:
    with spool.open(key, lambda: b"made anew") as payload:
        return payload.read(0, 9) != b"made anew"


def test_what_was_not_asked_for_longest_goes_first(spool):
    for key, size in (("o", 50), ("k", 30), ("o", 0), ("n", 40)):
        keep(spool, key, size)
    assert spool.memory_bytes == 90
    assert is_there(spool, "o")
    assert is_there(spool, "n")
    assert not is_there(spool, "k")


def test_what_is_read_moves_to_a_file_and_is_read_on(spool, tmp_path):
    with spool.open("o", lambda: b"o" * 60) as old, spool.open("o", lambda: b"never") as again:
        assert old.read(0, 10) == b"o" * 10
        keep(spool, "n", 80)
        assert spool.memory_bytes == 80
        assert old.read(10, 100) == again.read(10, 100) == b"o" * 50
        assert old.announced.sha256 == hashlib.sha256(b"o" * 60).hexdigest()
        assert is_there(spool, "o")
    assert not is_there(spool, "o")
    assert not list(tmp_path.iterdir())


def test_many_slow_readers_of_different_payloads_take_no_more_memory(spool):
    payloads = [spool.open(str(number), lambda: b"x" * 40) for number in range(50)]
    assert spool.memory_bytes <= 100
    assert all(payload.read(20, 40) == b"x" * 20 for payload in payloads)
    for payload in payloads:
        payload.close()
        payload.close()
    assert spool.memory_bytes <= 100


def test_one_that_is_larger_than_the_spool_is_sent_all_the_same(spool):
    with spool.open("l", lambda: b"l" * 1000) as large:
        assert (large.announced.size, large.read(999, 5)) == (1000, b"l")
    keep(spool, "s", 10)
    assert spool.memory_bytes == 10


def test_a_reading_that_is_forgotten_ends(spool):
    spool.open("o", lambda: b"o" * 90)
    keep(spool, "n", 90)
    assert not is_there(spool, "o")


def test_a_payload_that_cannot_be_made_is_an_error_for_him_who_asked_and_can_be_asked_again(spool):
    def fail() -> bytes:
        raise InputError("no such mask")

    with pytest.raises(InputError):
        spool.open("a", fail)
    with spool.open("a", lambda: b"now") as payload:
        assert payload.read(0, 9) == b"now"


@pytest.fixture
def spool_without_disk(tmp_path):
    """A spool whose directory went away under it: no file can be written any more."""
    directory = tmp_path / "gone"
    directory.mkdir()
    spool = Spool(directory, memory_bytes=100)
    directory.rmdir()
    return spool


def test_a_disk_that_takes_nothing_is_told_and_leaves_the_others_alone(spool_without_disk):
    spool = spool_without_disk
    with spool.open("o", lambda: b"o" * 60) as payload:
        with pytest.raises(LibraryError, match="a network of 60 bytes cannot be written") as refused:
            keep(spool, "n", 60)
        assert str(refused.value).endswith("free some space, then ask again")
        assert payload.read(0, 100) == b"o" * 60
    keep(spool, "n", 60)
    assert is_there(spool, "n")


def test_what_could_not_be_moved_counts_and_is_moved_once_the_disk_takes_it(spool_without_disk, tmp_path):
    spool = spool_without_disk
    readings = [spool.open(key, lambda: b"o" * 20) for key in "abcde"]
    with pytest.raises(LibraryError):
        keep(spool, "n", 80)
    assert spool.memory_bytes == 100
    (tmp_path / "gone").mkdir()
    keep(spool, "n", 80)
    assert spool.memory_bytes == 100
    assert [reading.read(0, 100) for reading in readings] == [b"o" * 20] * 5


@pytest.mark.parametrize("missing", [True, False])
def test_a_directory_where_no_file_can_be_written_is_refused_at_once(tmp_path, missing):
    mistyped = tmp_path / "spol"
    if not missing:
        mistyped.write_text("a file")
    with pytest.raises(InputError, match=r"spol: no file .*; give --spool a directory"):
        Spool(mistyped)
