"""docs/healing.md is followed as it stands; Ctrl-C then leaves what was there."""

import signal
import subprocess
import time
from pathlib import Path

import pytest
from documents import Terminal, read_blocks
from interruptible import start_interruptible
from test_command_lines import ENVIRONMENT, furnish

from server.healing.heal_library import store_of
from server.library import Library

ROOT = Path(__file__).parents[1]
AGAIN = "heal library.db --checkpoint backbone.safetensors --images tasks --iterations 100000"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    place = furnish(tmp_path_factory.mktemp("place"))
    with Terminal(place, ENVIRONMENT) as terminal:
        for block in read_blocks(ROOT / "docs" / "healing.md"):
            terminal.follow(block)
    return place


def test_the_library_has_a_backbone_that_was_healed_through_its_votes(place):
    with Library.open(place / "library.db") as library:
        healed = store_of(library).backbone()
    assert (healed.entries, healed.iterations, healed.images) == (2, 40, 154)


def test_healing_that_is_stopped_by_ctrl_c_leaves_what_was_there(place):
    store = place / "library.db.healed"
    (store / "features.safetensors").unlink()
    before = (store / "backbone.safetensors").read_bytes()
    process = start_interruptible(
        ["maskvote-server", *AGAIN.split()], cwd=place, env=ENVIRONMENT, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 60
    while not (store / "features.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.1)  # until it heals
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert {path.name for path in store.iterdir()} == {"backbone.safetensors", "features.safetensors"}
    assert (store / "backbone.safetensors").read_bytes() == before
