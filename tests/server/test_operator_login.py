"""maskvote-server login: an operator of a server elsewhere needs no other option after it."""

import sys
from dataclasses import replace

import pytest
import structlog
from certificates import Authority
from grpc_server import running_server
from operated import WITH_TOKENS, token_file

from common.backbone import weights_digest
from common.command_line import run
from common.saved_connections import SavedConnections
from server.cli import cli
from server.library import Library
from server.serving import Tls


@pytest.fixture
def command(monkeypatch, capfd):
    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["maskvote-server", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            run(cli)
        return int(ended.value.code), *capfd.readouterr()

    return call


def test_after_a_login_an_operator_needs_no_option_of_a_server(
    command, offer, weights, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("MASKVOTE_TOKEN", raising=False)
    authority, path = Authority(tmp_path / "pki"), tmp_path / "birds.db"
    Library.create(path, offer, weights_digest(weights)).close()
    boss, device = token_file(path, "operator"), token_file(path, "device")
    with (
        structlog.testing.capture_logs(),
        Library.open(path) as library,
        running_server(library, weights, replace(WITH_TOKENS, tls=Tls(*authority.certify("s")))) as port,
    ):
        server = f"grpc://localhost:{port}"
        status, _, told = command("login", server, "--ca", authority.ca, "--token-file", device)
        assert (status, "has the role device, and this call needs operator" in told) == (5, True), told
        assert SavedConnections("operator").all() == []
        status, printed, _ = command("login", server, "--ca", authority.ca, "--token-file", boss)
        assert (status, printed.startswith(f"logged in to localhost:{port} (0 entries vote)")) == (
            0,
            True,
        )
        assert command("statistics", server, "--json")[0] == 0
        assert command("list", f"GRPC://LOCALHOST:{port}")[0] == 0
        assert f"localhost:{port}" in command("connections")[1]
        assert SavedConnections("device").all() == []
        assert command("logout", server)[0] == 0
        assert command("statistics", server)[0] == 3
