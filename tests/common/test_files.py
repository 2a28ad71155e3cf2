"""Files are there whole or not at all, and readable as others are."""

import os

import pytest

from common.envelope import seal, unseal
from common.errors import InputError
from common.files import read_whole, write_whole


def test_what_is_written_is_read_and_may_be_read_by_whom_the_umask_lets(tmp_path):
    path = tmp_path / "file"
    write_whole(path, b"one")
    write_whole(path, b"two")
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    assert read_whole(path) == b"two"
    assert path.stat().st_mode == plain.stat().st_mode
    assert sorted(os.listdir(tmp_path)) == ["file", "plain"]


def test_a_place_that_is_not_there_is_named_and_nothing_is_left(tmp_path):
    with pytest.raises(InputError, match="nowhere/file cannot be written"):
        write_whole(tmp_path / "nowhere" / "file", b"data")
    with pytest.raises(InputError, match="file cannot be read"):
        read_whole(tmp_path / "file")
    assert os.listdir(tmp_path) == []


def test_a_message_and_its_payload_survive_a_file(tmp_path):
    seal(tmp_path / "sealed", b"message", b"payload")
    assert unseal(tmp_path / "sealed") == (b"message", b"payload")


@pytest.mark.parametrize("length", [0, 5, 20, 30])
def test_a_file_cut_short_is_no_message(tmp_path, length):
    seal(tmp_path / "sealed", b"message", b"payload")
    (tmp_path / "sealed").write_bytes((tmp_path / "sealed").read_bytes()[:length])
    with pytest.raises(InputError, match=r"copy it again|no maskvote file"):
        unseal(tmp_path / "sealed")
