"""maskvote-client login: tried, saved, used by the commands after it, and removed again."""

import io
import json
import os
import pty
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from certificates import Authority
from fresh_process import call_one_by_one
from grpc_server import PLENTY, running_server

from common.saved_connections import SavedConnections
from server import tokens
from server.serving import ServeSettings, Tls

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def config(monkeypatch, tmp_path) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("MASKVOTE_TOKEN", raising=False)
    return tmp_path / "config" / "maskvote"


@pytest.fixture
def authority(tmp_path) -> Authority:
    return Authority(tmp_path / "pki")


@pytest.fixture
def token(library, tmp_path) -> str:
    issued = tokens.add(library, "kitchen", "device")
    (tmp_path / "my.token").write_text(issued + "\n")
    return issued


@contextmanager
def serving(library, weights, authority):
    pair = authority.certify("server")
    settings = ServeSettings(address="127.0.0.1:0", tls=Tls(*pair), limits=PLENTY, grace_seconds=5)
    with running_server(library, weights, settings) as port:
        yield f"localhost:{port}"


def test_after_a_login_a_device_needs_no_option_of_a_server(
    client, library, weights, images, authority, token, tmp_path, config
):
    with serving(library, weights, authority) as address:
        words = ["login", "--server", address, "--ca", authority.ca, "--token-file", "my.token"]
        status, told, _ = client(*words)
        assert status == 0
        assert told.startswith(f"logged in to {address} (it offers test_resnet); saved in {config}")
        (tmp_path / "my.token").unlink()
        authority.ca.unlink()
        status, _, told = client("describe", "--data", images, "--keep-ratio", 0.3)
        assert (status, f"through {address}, to which you logged in" in told) == (0, True), told
        words = ["adapt", "--data", images, "--keep-ratio", 0.3, "--iterations", 1, "--state", "state"]
        assert client(*words)[0] == 0
        assert library.entries()[0].contributor == "kitchen"
        status, told, _ = client("connections", "--json")
        expected = {"server": address, "token": True, "tls": "own CA", "certificate": None}
        assert json.loads(told) == [expected]
        status, told, _ = client("connections")
        assert address in told
        assert token not in told
        assert client("logout")[:2] == (
            0,
            f"nothing is saved for {address} any more; its token is good until its operator revokes it\n",
        )
        assert client("describe", "--data", images, "--keep-ratio", 0.3)[0] == 2


def test_a_server_that_is_named_is_reached_as_it_was_saved_and_another_one_is_told_nothing(
    client, library, weights, images, authority, token
):
    with serving(library, weights, authority) as address:
        login = ["login", "--server", address, "--ca", authority.ca, "--token-file", "my.token"]
        assert client(*login)[0] == 0
        words = ["describe", "--data", images, "--keep-ratio", 0.3, "--patience", 0]
        assert client(*words, "--server", address)[0] == 0
        other = address.replace("localhost", "127.0.0.1")
        status, _, told = client(*words, "--server", other, "--ca", authority.ca)
        assert (status, "this call has no token" in told) == (5, True), told


def test_those_who_take_part_by_files_are_not_asked_about_servers(client, images, config):
    config.mkdir(parents=True)
    (config / "device-connections.json").write_text("damaged")
    status, _, told = client("describe", "--offer", "no.offer", "--data", images, "--keep-ratio", 0.3)
    assert (status, "no.offer cannot be read" in told) == (2, True), told
    status, _, told = client("describe", "--data", images, "--keep-ratio", 0.3)
    assert (status, "is damaged; remove it, and log in again" in told) == (2, True), told


@pytest.mark.parametrize(
    ("changes", "status", "sentence"),
    [
        ({"--token-file": None}, 5, "this call has no token"),
        ({"--token-file": "wrong.token"}, 5, "this server knows no such token"),
        ({"--token-file": "operator.token"}, 5, "has the role operator, and this call needs device"),
        ({"--token-file": "empty.token"}, 2, "empty.token is empty"),
        ({"--ca": None}, 3, "speaks TLS, and was called without; give the CA"),
        ({"--ca": "no.crt"}, 2, "no.crt cannot be read"),
        ({"--server": "127.0.0.1:1"}, 6, "127.0.0.1:1 does not answer"),
        ({"--server": "https://localhost:1"}, 2, "write grpc://localhost:1"),
    ],
)
def test_what_does_not_work_is_told_and_not_saved(
    client, library, weights, authority, token, tmp_path, config, changes, status, sentence
):
    (tmp_path / "wrong.token").write_text("mv_" + "A" * 43)
    (tmp_path / "operator.token").write_text(tokens.add(library, "boss", "operator"))
    (tmp_path / "empty.token").write_text("\n")
    with serving(library, weights, authority) as address:
        options = {"--server": address, "--ca": authority.ca, "--token-file": "my.token"} | changes
        words = [word for name, value in options.items() if value is not None for word in (name, value)]
        found, _, told = client("login", *words)
    assert (found, sentence in told) == (status, True), told
    assert not config.exists()


class Piped(io.TextIOWrapper):
    """Standard input that is no terminal."""


def test_a_token_comes_through_standard_input(client, library, weights, authority, token, monkeypatch):
    with serving(library, weights, authority) as address:
        monkeypatch.setattr(sys, "stdin", Piped(io.BytesIO(f"\ufeff{token}\r\n".encode())))
        words = ["login", "--server", address, "--ca", authority.ca, "--token-stdin"]
        assert client(*words)[0] == 0
        assert SavedConnections("device").of(address).token == token
        status, _, told = client(*words, "--token-file", "my.token")
        assert (status, "--token-stdin and --token-file (my.token) do not go together" in told) == (
            2,
            True,
        )


def test_a_token_that_is_typed_is_not_shown(library, weights, authority, token, tmp_path):
    with serving(library, weights, authority) as address:
        words = ["login", "--server", address, "--ca", str(authority.ca)]
        main, side = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "client", *words],
            stdin=side, stdout=side, stderr=side, cwd=ROOT, start_new_session=True,
        )  # fmt: skip
        os.close(side)
        shown = b""
        while b"asks for none)" not in shown:
            shown += os.read(main, 4096)
        os.write(main, token.encode() + b"\n")
        assert process.wait(60) == 0
        shown += _rest(main)
        os.close(main)
    assert b"logged in to" in shown
    assert token.encode() not in shown
    assert SavedConnections("device").of(address).token == token


def _rest(terminal: int) -> bytes:
    rest = b""
    while True:
        try:
            if not (read := os.read(terminal, 4096)):
                return rest
        except OSError:  # how Linux tells that nobody holds the other side
            return rest
        rest += read


def test_logging_out_of_one_of_several_says_which(client, library, weights, authority, token):
    with serving(library, weights, authority) as address:
        other = address.replace("localhost", "127.0.0.1")
        for server in (address, other):
            words = ["--server", server, "--ca", authority.ca, "--token-file", "my.token"]
            assert client("login", *words)[0] == 0
    status, _, told = client("logout")
    assert (status, f"2 connections are saved ({address}, {other}); say which" in told) == (2, True), told
    assert client("logout", "--server", f"grpc://{other}")[0] == 0
    assert [one.address for one in SavedConnections("device").all()] == [address]
    status, _, told = client("logout", "--server", other)
    assert (status, "no connection to" in told) == (2, True)


def test_a_login_needs_no_torch(config):
    lines = [
        ["login", "--server", "127.0.0.1:1"],
        ["connections"],
        ["logout"],
    ]
    ended, modules = call_one_by_one("client.cli", lines)
    assert [status for status, _ in ended] == [6, 0, 2]
    assert modules & {"torch", "torchvision", "timm", "flwr"} == set()
