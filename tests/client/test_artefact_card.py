"""An artefact and its card are replaced as one: whoever kills it, what is there belongs together."""

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from client.artefacts.card import card_path, digest_of, read_card, write_artefact
from common.errors import InputError, MismatchError

ROOT = Path(__file__).parents[2]
OLD, NEW = b"the old network" * 100, b"the new one" * 200


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def says(artefact: Path) -> tuple[bytes, str | None]:
    """What an artefact and its card are, as whoever uses them finds them."""
    card = read_card(artefact, digest_of(artefact))
    return artefact.read_bytes(), None if card is None else card["name"]


@pytest.fixture
def artefact(tmp_path) -> Path:
    return tmp_path / "my.onnx"


def test_a_card_tells_what_was_given_and_the_digest_and_size_of_the_artefact(artefact):
    card = write_artefact(artefact, NEW, {"name": "new", "classes": ["owl"]})
    assert card == json.loads((artefact.parent / "my.onnx.json").read_text())
    assert (card["sha256"], card["bytes"]) == (digest(NEW), len(NEW))
    assert (card["name"], card["classes"], card["card_version"]) == ("new", ["owl"], 1)
    assert artefact.read_bytes() == NEW
    assert read_card(artefact, digest(NEW)) == card


def test_after_replacing_one_there_is_nothing_of_the_old_one(artefact):
    write_artefact(artefact, OLD, {"name": "old"})
    write_artefact(artefact, NEW, {"name": "new"})
    assert says(artefact) == (NEW, "new")
    assert sorted(os.listdir(artefact.parent)) == ["my.onnx", "my.onnx.json"]
    with pytest.raises(MismatchError, match="card of another artefact"):
        read_card(artefact, digest(OLD))


KILLED = """
import os, signal, sys
from pathlib import Path
from client.artefacts.card import write_artefact

remaining = int(sys.argv[2])

def dying(call):
    def step(*arguments, **options):
        global remaining
        if remaining == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        remaining -= 1
        return call(*arguments, **options)
    return step

os.replace, os.fsync, Path.open = dying(os.replace), dying(os.fsync), dying(Path.open)
write_artefact(Path(sys.argv[1]), b"the new one" * 200, {"name": "new"})
"""
STARTS = {
    "none before": [],
    "one before": [("old", OLD)],
    "one without a card before": [(None, OLD)],
    "the same one before": [("new", NEW)],
}


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS.keys())
def test_killed_at_any_step_the_artefact_that_is_there_has_its_card(tmp_path, start):
    allowed = {(data, name) for name, data in start} | {(NEW, "new")}
    seen = set()
    for steps in range(100):
        artefact = tmp_path / str(steps) / "my.onnx"
        artefact.parent.mkdir()
        for name, data in start:
            write_artefact(artefact, data, {"name": name})
            if name is None:
                card_path(artefact).unlink()
        words = [sys.executable, "-c", KILLED, str(artefact), str(steps)]
        ended = subprocess.run(words, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
        if start or artefact.exists():
            assert says(artefact) in allowed
            seen.add(says(artefact))
        if ended.returncode == 0:
            break
        assert ended.returncode == -signal.SIGKILL
        # The same command once more leaves the new one, whatever was left over.
        write_artefact(artefact, NEW, {"name": "new"})
        assert says(artefact) == (NEW, "new")
    assert steps > 8
    assert says(artefact) == (NEW, "new")
    assert seen == allowed


@pytest.mark.parametrize("before", [True, False])
def test_a_full_disk_is_told_and_leaves_what_was_there(artefact, before):
    """Here the system takes no file of more than so many bytes, as a full disk would."""
    if before:
        write_artefact(artefact, OLD, {"name": "old"})
    bounds = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, bounds[1]))
    try:
        with pytest.raises(InputError, match=r"cannot be written \(.*\); free some space"):
            write_artefact(artefact, NEW, {"name": "new"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, bounds)
    assert sorted(os.listdir(artefact.parent)) == (["my.onnx", "my.onnx.json"] if before else [])
    if before:
        assert says(artefact) == (OLD, "old")


def test_a_disk_full_at_the_card_leaves_what_was_there(artefact):
    write_artefact(artefact, OLD, {"name": "old"})
    bounds = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(NEW) + 1, bounds[1]))
    try:
        with pytest.raises(InputError, match=r"my\.onnx\.json cannot be written"):
            write_artefact(artefact, NEW, {"name": "new" * 2000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, bounds)
    assert says(artefact) == (OLD, "old")


def test_a_place_that_cannot_be_written_to_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.onnx").mkdir()
    for place in ("nowhere/my.onnx", "file/my.onnx", "folder.onnx"):
        with pytest.raises(InputError, match=r"cannot be written|is a directory"):
            write_artefact(tmp_path / place, NEW, {"name": "new"})
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder.onnx"]


WRONG = {
    "no JSON": (b"{", InputError, "is no JSON"),
    "no text": (b"\xff\xfe\x00", InputError, "is no JSON"),
    "a list": (
        b"[]",
        InputError,
        "is no card of version 1, which this maskvote knows: it names no version",
    ),
    "nested without end": (b"[" * 100_000, InputError, "is no JSON"),
    "another version": (b'{"card_version": 2}', InputError, "it is of version 2"),
    "another artefact": (
        json.dumps({"card_version": 1, "sha256": digest(OLD)}).encode(),
        MismatchError,
        f"sha256 {digest(OLD)[:12]}, my.onnx has {digest(NEW)[:12]}",
    ),
    "no digest": (b'{"card_version": 1, "replaces": 3}', MismatchError, "another artefact"),
}


@pytest.mark.parametrize(("content", "error", "reason"), WRONG.values(), ids=WRONG.keys())
def test_a_card_that_is_none_or_anothers_is_refused_in_a_sentence_and_can_be_replaced(
    artefact, content, error, reason
):
    artefact.write_bytes(NEW)
    card_path(artefact).write_bytes(content)
    with pytest.raises(error, match=reason) as raised:
        read_card(artefact, digest(NEW))
    assert "export the network again" in str(raised.value)
    assert "\n" not in str(raised.value)
    write_artefact(artefact, OLD, {"name": "old"})
    assert says(artefact) == (OLD, "old")


def test_an_artefact_without_a_card_has_none(artefact):
    artefact.write_bytes(NEW)
    assert says(artefact) == (NEW, None)
