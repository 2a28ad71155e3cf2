"""What a login saves is there for later commands, for its user's eyes and its server alone."""

import json
import os
import stat
from pathlib import Path

import pytest
from certificates import Authority

from common.connection_options import Connect
from common.errors import InputError
from common.pem_files import read_authorities
from common.saved_connections import SavedConnection, SavedConnections

ONE = SavedConnection("one.example:7070", token="mv_one")
OTHER = SavedConnection("other.example:7070", token="mv_other")


@pytest.fixture(autouse=True)
def config(monkeypatch, tmp_path) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("MASKVOTE_TOKEN", raising=False)
    return tmp_path / "config"


@pytest.fixture
def saved() -> SavedConnections:
    return SavedConnections("device")


def test_what_is_saved_is_found_by_its_address_and_the_newest_first_of_all(saved):
    assert saved.all() == []
    assert saved.newest() is None
    for connection in (ONE, OTHER):
        saved.save(connection)
    assert saved.all() == [ONE, OTHER]
    assert saved.newest() == OTHER
    assert saved.of("grpc://ONE.example:7070") == ONE
    assert saved.of("one.example:7071") is None
    renewed = SavedConnection("One.Example.:7070", token="mv_new", insecure=False)
    saved.save(renewed)
    assert [one.token for one in saved.all()] == ["mv_other", "mv_new"]
    saved.forget("one.example:7070")
    assert saved.all() == [OTHER]
    with pytest.raises(
        InputError, match=r"no connection to one\.example:7070 is saved; saved are: other"
    ):
        saved.forget("one.example:7070")


def test_roles_share_nothing(saved):
    saved.save(ONE)
    assert SavedConnections("operator").all() == []


def test_only_its_user_can_read_it_whatever_was_there_before(saved, config):
    (config / "maskvote").mkdir(parents=True, mode=0o755)
    before = os.umask(0)
    try:
        saved.save(ONE)
    finally:
        os.umask(before)
    assert stat.S_IMODE((config / "maskvote").stat().st_mode) == 0o700
    assert stat.S_IMODE(saved.file.stat().st_mode) == 0o600
    assert [path.name for path in saved.file.parent.iterdir()] == ["device-connections.json"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"version": 1}',
        b'{"version": 1, "connections": {}, "connections": [1]}',
        b'{"version": 1, "connections": [{"address": "one.example"}]}',
        b'{"version": 1, "connections": [{"address": "one.example:1", "token": "two words"}]}',
        b'{"version": 1, "connections": [{"address": "one.example:1", "token": 5}]}',
        b'{"version": 1, "connections": [{"address": "one.example:1", "insecure": "no"}]}',
        b'{"version": 1, "connections": [{"address": "one.example:1", "colour": "red"}]}',
        b'{"version": 1, "connections": [{"token": "mv_one"}]}',
    ],
)
def test_a_damaged_file_is_told_in_a_sentence_and_stays_as_it_is(saved, content):
    saved.save(ONE)
    saved.file.write_bytes(content)
    for use in (saved.all, saved.newest, lambda: saved.of("a:1"), lambda: saved.save(OTHER)):
        with pytest.raises(
            InputError, match=r"device-connections\.json is damaged; remove it, and log in"
        ):
            use()
    assert saved.file.read_bytes() == content


def test_a_file_of_a_later_version_is_left_to_it(saved):
    saved.save(ONE)
    saved.file.write_text(json.dumps({"version": 2, "connections": []}))
    with pytest.raises(InputError, match="has version 2, this maskvote reads 1; use the newer one"):
        saved.newest()


def test_without_a_home_nothing_is_saved_and_all_options_do(saved, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative/ones/are/ignored")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    assert saved.newest() is None
    assert saved.of("one.example:7070") is None
    for use in (saved.all, lambda: saved.save(ONE)):
        with pytest.raises(
            InputError, match="this user has no home directory to save connections in; set HOME"
        ):
            use()


def test_a_home_that_cannot_be_written_is_told(saved, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    assert saved.newest() is None
    with pytest.raises(InputError, match=r"cannot be made .*; set XDG_CONFIG_HOME"):
        saved.save(ONE)


# What is given, and what is saved


@pytest.fixture
def authority(tmp_path) -> Authority:
    return Authority(tmp_path / "authority")


def test_the_command_line_wins_over_the_environment_and_that_over_what_is_saved(
    saved, monkeypatch, tmp_path
):
    saved.save(ONE)
    (tmp_path / "my.token").write_text("mv_file")
    assert Connect(saved)("one.example:7070").token == "mv_one"
    monkeypatch.setenv("MASKVOTE_TOKEN", "mv_environment")
    assert Connect(saved)("one.example:7070").token == "mv_environment"
    assert Connect(saved, tmp_path / "my.token")("one.example:7070").token == "mv_file"
    monkeypatch.setenv("MASKVOTE_TOKEN", "")
    assert Connect(saved)("one.example:7070").token == "mv_one"


def test_a_saved_token_goes_to_no_other_server(saved):
    saved.save(ONE)
    for address in ("other.example:7070", "one.example:7071", "one.example.org:7070", "localhost:7070"):
        assert Connect(saved)(address).token is None


def test_insecure_uses_nothing_of_what_is_saved(saved):
    saved.save(ONE)
    connection = Connect(saved, insecure=True)("one.example:7070")
    assert (connection.token, connection.tls) == (None, False)


def test_each_option_takes_the_place_of_what_is_saved_of_its_kind(saved, authority, tmp_path):
    other = Authority(tmp_path / "other", "another")
    mine, yours = authority.certify("mine"), authority.certify("yours")
    asked = Connect(saved, ca=authority.ca, certificate=mine.certificate, key=mine.key)
    saved.save(asked.to_save(asked.anew("localhost:7070", "mv_one")))
    used = Connect(saved)("localhost:7070")
    assert used == asked.anew("localhost:7070", "mv_one")
    assert used.tls
    changed = Connect(saved, ca=other.ca)("localhost:7070")
    assert changed.ca == read_authorities(other.ca)
    assert (changed.token, changed.certificate) == ("mv_one", used.certificate)
    changed = Connect(saved, certificate=yours.certificate, key=yours.key)("localhost:7070")
    assert changed.certificate != used.certificate
    assert changed.ca == used.ca
    with pytest.raises(InputError, match="the key is missing"):
        Connect(saved, certificate=yours.certificate)("localhost:7070")


def test_authorities_may_move_and_a_certificate_is_renewed_in_place(
    saved, authority, tmp_path, monkeypatch
):
    mine = authority.certify("mine")
    monkeypatch.chdir(mine.certificate.parent)
    asked = Connect(saved, ca=authority.ca, certificate=Path("mine.crt"), key=Path("mine.key"))
    saved.save(asked.to_save(asked.anew("localhost:7070", None)))
    authority.ca.unlink()
    monkeypatch.chdir(tmp_path)
    before = Connect(saved)("localhost:7070")
    authority.certify("mine")
    after = Connect(saved)("localhost:7070")
    assert after.ca == before.ca
    assert after.certificate != before.certificate
    mine.key.unlink()
    with pytest.raises(InputError, match=r"mine\.key cannot be read"):
        Connect(saved)("localhost:7070")
