"""docs/deploy.md is followed as it stands: a server with TLS and tokens, a device, and the operator."""

import json
import os
from pathlib import Path

import pytest
from documents import Terminal, read_blocks, with_free_ports
from test_command_lines import ENVIRONMENT, furnish

from server.library import Library

ROOT = Path(__file__).parents[1]
SAVED = "config/maskvote/device-connections.json"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """What is there after the guide; `log` is what the server said."""
    place = furnish(tmp_path_factory.mktemp("place"))
    # Else a probe of another guide's library could be this one's, and be kept already.
    own = {
        "XDG_CONFIG_HOME": str(place / "config"),
        "MASKVOTE_CACHE": str(tmp_path_factory.mktemp("cache")),
    }
    with Terminal(place, {**ENVIRONMENT, **own}) as terminal:
        for block in with_free_ports(read_blocks(ROOT / "docs" / "deploy.md"), 7070, 9464):
            terminal.follow(block)
    (place / "log").write_text(terminal.said("server"))
    return place


def test_the_device_has_its_network_and_the_library_its_mask(place):
    assert (place / "network.safetensors").stat().st_size > 0
    with Library.open(place / "library.db") as library:
        assert [entry.contributor for entry in library.entries()][2:] == ["kitchen"]
        assert library.statistics().removed == 0
        assert library.statistics().unanswered == 0


def test_tokens_and_keys_are_for_their_owner_alone(place):
    for name in ("kitchen.token", "boss.token", "ca.key", "server.key", "kitchen/request", SAVED):
        assert os.stat(place / name).st_mode & 0o077 == 0, name
    token = (place / "kitchen.token").read_text().strip()
    assert token.encode() not in (place / "library.db").read_bytes()


def test_the_log_tells_every_call_and_ends_with_grace(place):
    lines = [json.loads(line) for line in (place / "log").read_text().splitlines() if line[:1] == "{"]
    methods = [line["method"] for line in lines if line["event"] == "call" and line["status"] == "OK"]
    assert {"GetOffer", "FetchProbe", "Assign", "FetchSubNetwork", "Record", "ExportEntries"} <= set(
        methods
    )
    assert [line["status"] for line in lines if line["event"] == "call"][-1] == "UNAUTHENTICATED"
    assert lines[-1]["event"] == "stopped"
