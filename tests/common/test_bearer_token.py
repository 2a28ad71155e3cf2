"""A token is found in whatever people keep it in, and what is none is told without showing it."""

import codecs
import os

import pytest

from common.bearer_token import read_token, token_in
from common.errors import InputError

TOKEN = "mv_" + "Ab3-_" * 8 + "xyz"


@pytest.mark.parametrize(
    "data",
    [
        TOKEN.encode(),
        f"{TOKEN}\n".encode(),
        f"  {TOKEN}\r\n\r\n".encode(),
        codecs.BOM_UTF8 + f"{TOKEN}\r\n".encode(),
        codecs.BOM_UTF16_LE + f"{TOKEN}\r\n".encode("utf-16-le"),
        codecs.BOM_UTF16_BE + f"{TOKEN}\n".encode("utf-16-be"),
        f'"{TOKEN}"\n'.encode(),
        f"' {TOKEN} '".encode(),
        f"\u00a0{TOKEN}\u200b".encode(),
        f"{TOKEN}\0".encode(),
    ],
)
def test_what_is_around_a_token_is_no_part_of_it(tmp_path, data):
    (tmp_path / "my.token").write_bytes(data)
    assert read_token(tmp_path / "my.token") == TOKEN


def test_a_token_may_come_through_a_pipe():
    reader, writer = os.pipe()
    os.write(writer, TOKEN.encode())
    os.close(writer)
    try:
        assert read_token(f"/dev/fd/{reader}") == TOKEN
    finally:
        os.close(reader)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "my.token is empty"),
        ("\ufeff\n", "my.token is empty"),
        ('""', "my.token is empty"),
        ("two words", "my.token has 2 words or lines"),
        ("mv_a\nmv_b\n", "my.token has 2 words or lines"),
        ("Bearer mv_a", "my.token has 2 words or lines"),
        ("mv_é", "my.token has characters that no token has"),
        ("mv_\u200bhidden", "my.token has characters that no token has"),
        ("mv_" + "x" * 198, "my.token has 201 characters"),
    ],
)
def test_what_is_no_token_is_told_without_showing_it(text, sentence):
    with pytest.raises(InputError) as refused:
        token_in(text, "my.token")
    assert str(refused.value).startswith(sentence)
    assert "give it as it was handed out" in str(refused.value)
    assert "mv_" not in str(refused.value)


def test_a_file_that_cannot_be_read_is_told(tmp_path):
    with pytest.raises(InputError, match="no-token cannot be read"):
        read_token(tmp_path / "no-token")
    with pytest.raises(InputError, match="cannot be read"):
        read_token(tmp_path)
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(17 * 1024**2)
    with pytest.raises(InputError, match="has more than 16,777,216 bytes; check the path"):
        read_token(tmp_path / "huge")
