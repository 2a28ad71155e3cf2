"""Pre-training: weights from random ones, the same for a seed, and with a teacher its features too."""

import json

import pytest
import torch
from click.testing import CliRunner
from glyph_tasks import glyph_backbone, glyph_images
from PIL import Image

from common.backbone import Backbone, read_weights
from common.errors import InputError
from common.fitting import accuracy, all_features
from common.images import PixelImages
from common.rebuild import rebuild
from server.healing.heal import PublicImages
from simulations.cli import cli
from simulations.glyphs import SCRIPTS, render
from simulations.pretraining import PretrainingSettings, _varied_batches, pretrain

CHARACTERS = SCRIPTS["greek"][:5]


@pytest.fixture(scope="module")
def images() -> PixelImages:
    return glyph_images(CHARACTERS, 30, glyph_backbone(), seed=0)


def test_it_learns_and_the_same_seed_comes_to_the_same_weights(images):
    settings = PretrainingSettings(
        iterations=40, batch_size=32, optimiser="adamw", learning_rate=3e-3, clip_norm=1.0
    )
    told = []
    one = pretrain(glyph_backbone(), images, settings, lambda *done: told.append(done))
    other = pretrain(glyph_backbone(), images, settings)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert told == [(k, 40) for k in range(1, 41)]
    assert accuracy(rebuild(glyph_backbone(), one), images) > 0.6


def test_with_a_teacher_the_features_tell_the_teachers(images):
    torch.manual_seed(0)
    features = torch.randn(5, 3)[images.labels] + 0.01 * torch.randn(len(images), 3)
    teacher = PublicImages(images, features.half())
    settings = PretrainingSettings(iterations=40, batch_size=32, optimiser="adamw", learning_rate=3e-3)

    def left_untold(teacher: PublicImages | None) -> float:
        """The share of the spread of the teacher's features that the best linear map leaves."""
        weights = pretrain(glyph_backbone(), images, settings, teacher=teacher)
        own = all_features(rebuild(glyph_backbone(), weights), images)
        own = torch.cat([own, torch.ones(len(own), 1)], 1)
        told = own @ torch.linalg.lstsq(own, features, driver="gelsd").solution
        return float((told - features).square().mean() / features.var())

    assert left_untold(teacher) < left_untold(None)


def test_images_are_flipped_and_shifted_and_otherwise_as_they_are(images):
    plain = next(_varied_batches(images, PretrainingSettings()))
    assert torch.equal(plain[1], images.batch(plain[0]))
    indices, flipped = next(_varied_batches(images, PretrainingSettings(flips=True)))
    given = images.batch(indices)
    either = [
        (torch.equal(a, b), torch.equal(a, b.flip(-1))) for a, b in zip(flipped, given, strict=True)
    ]
    assert all(any(pair) for pair in either)
    assert {pair for pair in either if sum(pair) == 1} == {(True, False), (False, True)}
    indices, shifted = next(_varied_batches(images, PretrainingSettings(shift=2)))
    given = images.batch(indices)
    # Whatever the offset, the middle of an image is in it.
    places = [
        [
            (dy, dx)
            for dy in range(-2, 3)
            for dx in range(-2, 3)
            if torch.equal(a[:, 2:-2, 2:-2], b[:, 2 + dy : 30 + dy, 2 + dx : 30 + dx])
        ]
        for a, b in zip(shifted, given, strict=True)
    ]
    assert all(places)
    assert len({place[0] for place in places}) > 5


@pytest.mark.parametrize(
    "wrong", [{"iterations": 0}, {"batch_size": 1}, {"learning_rate": float("nan")}, {"shift": -1}]
)
def test_settings_that_train_nothing_are_refused(wrong):
    with pytest.raises(InputError, match="needed are at least 1"):
        PretrainingSettings(**wrong)


def test_the_command_writes_a_checkpoint_that_serves_as_a_teacher(tmp_path):
    pixels, labels = render(CHARACTERS, 12, size=32, seed=0)
    for k in range(len(CHARACTERS)):
        for number, image in enumerate(pixels[labels == k]):
            folder = tmp_path / "data" / ("train" if number < 8 else "val") / f"{k}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).convert("RGB").save(folder / f"{number}.png")
    common = [
        "pretrain", "--image-size", "32", "--data", str(tmp_path / "data"), "--iterations", "3",
        "--batch-size", "8", "--shift", "1", "--json",
    ]  # fmt: skip
    first = [*common, "--backbone", "test_resnet", "--out", str(tmp_path / "one.safetensors")]
    told = CliRunner().invoke(cli, first, catch_exceptions=False)
    record = json.loads(told.stdout)
    assert (record["classes"], record["images"], record["evaluation_images"]) == (5, 40, 20)
    backbone = Backbone.from_timm("test_resnet", num_classes=5, image_size=32)
    read_weights(tmp_path / "one.safetensors", backbone)
    second = [
        *common, "--backbone", "test_vit", "--out", str(tmp_path / "two.safetensors"),
        "--teacher", "test_resnet", "--teacher-checkpoint", str(tmp_path / "one.safetensors"),
    ]  # fmt: skip
    record = json.loads(CliRunner().invoke(cli, second, catch_exceptions=False).stdout)
    assert record["teacher"] == "test_resnet"
    assert 0 <= record["accuracy"] <= 1
    wrong = CliRunner().invoke(cli, [*first, "--num-classes", "7"])
    assert isinstance(wrong.exception, InputError)
    assert "has 5 classes; leave it out" in str(wrong.exception)
