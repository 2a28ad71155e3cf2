"""A library founded on one small task, and directories of such tasks: coloured squares on noise."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from flwr.supercore.task_identity import TaskIdentity
from PIL import Image
from safetensors.torch import save_file

from common.task_data import load_folder
from server.founding import found_library

CLASSES, TRAIN_IMAGES, JUDGING_IMAGES = 3, 8, 4


def draw_task(path: Path, seed: int) -> Path:
    """An ImageFolder of classes that differ in colour and place of a square."""
    generator = np.random.default_rng(seed)
    for name in range(CLASSES):
        colour, corner = generator.integers(0, 256, 3), generator.integers(0, 16, 2)
        for part, images in (("train", TRAIN_IMAGES), ("val", JUDGING_IMAGES)):
            folder = path / part / f"class{name}"
            folder.mkdir(parents=True)
            for number in range(images):
                pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                pixels[corner[0] : corner[0] + 16, corner[1] : corner[1] + 16] = colour
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return path


@pytest.fixture(scope="session")
def tasks(tmp_path_factory) -> Path:
    """A directory of three tasks, one for each partition."""
    path = tmp_path_factory.mktemp("tasks")
    for number in range(3):
        draw_task(path / f"task{number}", seed=number)
    return path


@pytest.fixture(scope="session")
def founded(tmp_path_factory, backbone, weights, tasks) -> Path:
    path = tmp_path_factory.mktemp("founded") / "library.db"
    images = load_folder(tasks / "task0", backbone).train
    found_library(path, backbone, weights, images).close()
    return path


@pytest.fixture
def library_path(founded, tmp_path) -> Path:
    """An empty library of its own for each test."""
    return Path(shutil.copy(founded, tmp_path / "library.db"))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, weights) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "backbone.safetensors"
    save_file(weights, path)
    return path


@pytest.fixture
def in_a_run(monkeypatch):
    """What Flower sets in the process of a run, without which no Message can be made."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
