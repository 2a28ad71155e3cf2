"""The spool: payloads are made once, read from the disk, and deleted when they take too much room."""

import hashlib
import resource
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from common.errors import InputError
from server.spool import Spool


@pytest.fixture
def spool(tmp_path):
    with Spool(tmp_path, max_bytes=100) as spool:
        yield spool


def files(tmp_path: Path) -> list[Path]:
    return [path for path in tmp_path.rglob("*") if path.is_file()]


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


def test_what_was_not_asked_for_longest_goes_first_and_whoever_reads_it_reads_on(spool, tmp_path):
    with spool.open("old", lambda: b"o" * 60) as old:
        spool.open("kept", lambda: b"k" * 30).file.close()
        spool.open("old", lambda: b"never").file.close()
        spool.open("new", lambda: b"n" * 40).file.close()
        assert {path.read_bytes()[:1] for path in files(tmp_path)} == {b"o", b"n"}
        spool.open("newer", lambda: b"w" * 40).file.close()
        assert {path.read_bytes()[:1] for path in files(tmp_path)} == {b"n", b"w"}
        assert old.read(0, 100) == b"o" * 60
    with spool.open("old", lambda: b"made anew") as again:
        assert again.read(0, 100) == b"made anew"


def test_one_that_is_larger_than_the_spool_is_sent_all_the_same(spool, tmp_path):
    with spool.open("large", lambda: b"l" * 1000) as large:
        assert large.announced.size == 1000
    assert len(files(tmp_path)) == 1


def test_a_payload_that_cannot_be_made_is_an_error_for_him_who_asked_and_can_be_asked_again(spool):
    def fail() -> bytes:
        raise InputError("no such mask")

    with pytest.raises(InputError):
        spool.open("a", fail)
    with spool.open("a", lambda: b"now") as payload:
        assert payload.read(0, 9) == b"now"


def test_nothing_is_left_when_it_ends(tmp_path):
    with Spool(tmp_path) as spool:
        spool.open("a", lambda: b"data").file.close()
        assert files(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_and_leaves_the_others_alone(tmp_path):
    """No file of the process may be larger than a kilobyte, which a full disk looks like to it."""
    program = """
import sys
from pathlib import Path
from common.errors import LibraryError
from server.spool import Spool
with Spool(Path(sys.argv[1])) as spool:
    spool.open("small", lambda: b"s" * 1000).file.close()
    try:
        spool.open("large", lambda: b"l" * 2000)
    except LibraryError as error:
        print(error)
    with spool.open("small", lambda: b"never") as payload:
        print(len(payload.read(0, 5000)))
"""

    def limit() -> None:
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))

    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=Path(__file__).parents[2], preexec_fn=limit, capture_output=True, text=True, check=True,
    )  # fmt: skip
    sentence, size = done.stdout.splitlines()
    assert "a network of 2,000 bytes cannot be written" in sentence
    assert sentence.endswith("free some space, then ask again")
    assert size == "1000"
