"""docs/artefacts.md is followed as it stands, from a network to predictions."""

import csv
import json
import re
from pathlib import Path

import pytest
import timm
import torch
from documents import Terminal, read_blocks
from test_command_lines import ENVIRONMENT, draw

from client.artefacts.card import digest_of, read_card
from client.export import save_network
from common.backbone import Backbone

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "docs" / "artefacts.md"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("place")
    draw(place / "mine", 3, 16, seed=3)
    backbone = Backbone.from_timm("test_resnet", num_classes=3, image_size=32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = timm.create_model("test_resnet", num_classes=3).eval()
    classes = [f"class-{k}" for k in range(3)]
    save_network(place / "network.safetensors", network, backbone, classes, "ab" * 32)
    with Terminal(place, ENVIRONMENT) as terminal:
        for block in read_blocks(GUIDE):
            terminal.follow(block)
    return place


def test_predictions_are_those_of_all_evaluation_images(place):
    with (place / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {Path(row["image"]) for row in rows} == {
        path.relative_to(place) for path in (place / "mine" / "val").rglob("*.png")
    }
    right = sum(Path(row["image"]).parent.name == row["class"] for row in rows)
    card = read_card(place / "birds-int8.onnx", digest_of(place / "birds-int8.onnx"))
    assert card["accuracy"]["share_right"] == pytest.approx(right / len(rows))


def test_the_guide_explains_every_word_of_a_card(place):
    table = GUIDE.read_text().partition("## The card")[2].partition("\n\nAn artefact")[0]
    explained = {
        word
        for row in table.splitlines()
        for word in re.findall(r"`(\w+)`", row.split("|")[1] if "|" in row else "")
    }
    for name in ("birds.onnx", "birds-int8.onnx"):
        assert set(json.loads((place / f"{name}.json").read_text())) <= explained
