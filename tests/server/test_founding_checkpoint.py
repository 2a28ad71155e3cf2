"""maskvote-server create: what the checkpoint says need not be given, and what it denies is refused."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from drawn_images import draw_images
from random_weights import random_weights
from safetensors.torch import save_file

from common.backbone import Backbone, weights_digest
from common.errors import InputError
from server.cli import cli
from server.library import Library

CLASSES = 7


@pytest.fixture
def place(tmp_path) -> Path:
    """A checkpoint of seven classes, as a training program wraps it, and a task."""
    weights = random_weights(Backbone.from_timm("test_resnet", num_classes=CLASSES))
    save_file({f"module.{name}": t for name, t in weights.items()}, tmp_path / "backbone.safetensors")
    draw_images(tmp_path / "task")
    return tmp_path


def create(place: Path, *words: str) -> Result:
    given = [
        "create", str(place / "library.db"), "--model", "hf-hub:timm/test_resnet", "--image-size", "32",
        "--checkpoint", str(place / "backbone.safetensors"), "--images", str(place / "task"),
    ]  # fmt: skip
    return CliRunner().invoke(cli, [*given, *words], standalone_mode=False)


@pytest.mark.parametrize("words", [[], ["--num-classes", str(CLASSES)]])
def test_a_library_is_founded_with_the_classes_of_the_checkpoint(place, words):
    result = create(place, *words)
    assert result.exception is None
    assert result.stdout.startswith(f"{place / 'library.db'}: test_resnet, ")
    backbone = Backbone.from_timm("test_resnet", num_classes=CLASSES, image_size=32)
    with Library.open(place / "library.db") as library:
        assert library.offer.backbone == backbone
        assert library.weights_digest == weights_digest(random_weights(backbone))


def test_other_classes_than_the_checkpoints_found_no_library(place):
    result = create(place, "--num-classes", "5")
    assert isinstance(result.exception, InputError)
    assert "--num-classes is 5, and " in str(result.exception)
    assert "backbone.safetensors has 7 classes; leave --num-classes out" in str(result.exception)
    assert not (place / "library.db").exists()
