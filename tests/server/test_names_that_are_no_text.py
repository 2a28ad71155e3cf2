"""Files of a server whose names are bytes that are no text, as Linux allows them."""

import os
import sys
from pathlib import Path

import pytest
from operated import entry_of

from common.backbone import weights_digest
from common.command_line import run
from server.cli import cli
from server.healing.public_images import images_digest
from server.library import Library

NAME = os.fsdecode(b"birds\xff?#%.db")


@pytest.fixture
def library(offer, weights, tmp_path) -> Path:
    with Library.create(tmp_path / NAME, offer, weights_digest(weights)) as opened:
        opened.take_in([entry_of(offer, 0)])
    return tmp_path / NAME


@pytest.mark.parametrize("words", [("list",), ("statistics",), ("backup", os.fsdecode(b"\xff.backup"))])
def test_a_library_and_its_copies_may_have_them(library, monkeypatch, capfd, words):
    monkeypatch.chdir(library.parent)
    monkeypatch.setattr(sys, "argv", ["maskvote-server", words[0], NAME, *words[1:]])
    with pytest.raises(SystemExit) as ended:
        run(cli)
    out, err = capfd.readouterr()
    assert (ended.value.code, err) == (0, "")
    assert "\\udcff" in out
    assert all(Path(name).exists() for name in words[1:])


def test_public_images_may_have_them(tmp_path):
    for name in (b"\xff.png", b"\xfe.png"):
        (tmp_path / os.fsdecode(name)).touch()
    one, other = sorted(tmp_path.iterdir())
    assert images_digest(tmp_path, [one]) != images_digest(tmp_path, [other])
