"""maskvote-server create and seed: which images and tasks are taken, and what is told of the rest."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import save_file

from common.errors import TaskDataError
from common.image_folders import SUFFIXES_IN_WORDS
from server.cli import cli
from server.library import Library


def draw_task(path: Path, seed: int) -> Path:
    lot = np.random.default_rng(seed)
    for part in ("train", "val"):
        for name in ("ant", "bee"):
            (path / part / name).mkdir(parents=True)
            for number in range(4):
                pixels = lot.integers(256, size=(32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(path / part / name / f"{number}.png")
    return path


@pytest.fixture
def place(tmp_path, weights) -> Path:
    """A checkpoint and two tasks, with what systems leave behind in each of them and beside them."""
    save_file(dict(weights), tmp_path / "backbone.safetensors")
    for number, name in enumerate(("first", "second")):
        task = draw_task(tmp_path / "tasks" / name, number)
        (task / "train" / "ant" / "._0.png").write_bytes(b"no image")
        (task / "train" / "ant" / "0.heic").write_bytes(b"of a phone")
        (task / "train" / ".ipynb_checkpoints").mkdir()
    for name in ("@eaDir", ".git"):
        (tmp_path / "tasks" / name).mkdir()
    return tmp_path


def told(place: Path, *words: str) -> Result:
    paths = [str(place / word) if (place / word).exists() else word for word in words]
    checkpoint = str(place / "backbone.safetensors")
    return CliRunner().invoke(cli, [*paths, "--checkpoint", checkpoint], standalone_mode=False)


def create(place: Path) -> Result:
    return told(
        place, "create", str(place / "library.db"), "--model", "test_resnet", "--num-classes", "5",
        "--image-size", "32", "--images", "tasks/first",
    )  # fmt: skip


def test_a_library_is_founded_and_seeded_on_what_are_images_and_the_rest_is_told_once(place):
    founded = create(place)
    assert founded.exception is None
    left_out = "1 .heic file, 1 hidden file, 1 folder (.ipynb_checkpoints)"
    rule = f"; image files end in {SUFFIXES_IN_WORDS}\n"
    assert founded.stderr == f"left out of {place / 'tasks' / 'first'}: {left_out}{rule}"
    words = ("--keep-ratio", "0.4", "--iterations", "1", "--rounds", "1")
    seeded = told(place, "seed", "library.db", "--tasks", "tasks", *words)
    assert seeded.exception is None
    left_out = "2 .heic files, 2 hidden files, 4 folders (.ipynb_checkpoints, .git, @eaDir)"
    assert seeded.stderr == f"left out of {place / 'tasks'}: {left_out}{rule}"
    with Library.open(place / "library.db") as library:
        assert [entry.contributor for entry in library.entries()] == ["operator:first", "operator:second"]


def test_every_task_is_looked_at_before_the_first_is_pruned(place):
    create(place)
    for path in (place / "tasks" / "second" / "train" / "bee").iterdir():
        path.rename(path.with_suffix(".heic"))
    refused = told(place, "seed", "library.db", "--tasks", "tasks", "--keep-ratio", "0.4")
    assert isinstance(refused.exception, TaskDataError)
    assert "second/train/bee; add images" in str(refused.exception)
    assert "(left out of it: 4 .heic files" in str(refused.exception)
    with Library.open(place / "library.db") as library:
        assert len(library) == 0
