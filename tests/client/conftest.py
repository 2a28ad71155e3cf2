"""A device's images, and a library that its server holds: empty, so that importance decides."""

import logging
from pathlib import Path

import numpy as np
import pytest
import structlog
from grpc_server import running_server
from PIL import Image

from client import patience
from client.adapt import describe
from common.backbone import weights_digest
from common.task_data import Task, load_folder
from server.library import Library


def draw_images(folder: Path, classes: int = 3, train: int = 8, judging: int = 4) -> Path:
    """An ImageFolder of noise, in each class about a colour of its own."""
    lot = np.random.default_rng(7)
    for name in range(classes):
        colour = lot.integers(0, 200, 3)
        for part, count in (("train", train), ("val", judging)):
            place = folder / part / f"class{name}"
            place.mkdir(parents=True)
            for number in range(count):
                pixels = colour + lot.integers(0, 56, (32, 32, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"{number}.png")
    return folder


@pytest.fixture(scope="module", autouse=True)
def _servers_say_nothing():
    """What a server logs would stand among what a device says, as both are in this process."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    return draw_images(tmp_path_factory.mktemp("device") / "mine")


@pytest.fixture(scope="session")
def task(images, backbone) -> Task:
    return load_folder(images, backbone)


@pytest.fixture
def library(tmp_path, offer, weights):
    with Library.create(tmp_path / "library.db", offer, weights_digest(weights)) as library:
        yield library


@pytest.fixture
def port(library, weights):
    with running_server(library, weights) as port:
        yield port


@pytest.fixture
def request_of(offer, task):
    """The request of a device for a network of this budget."""
    return lambda budget, number=0: describe(offer, task, budget, "smsp", f"{number:032x}")


@pytest.fixture
def hasty(monkeypatch):
    """Attempts follow each other at once."""
    monkeypatch.setattr(patience, "SHORTEST_SECONDS", 0.01)
    monkeypatch.setattr(patience, "LONGEST_SECONDS", 0.05)
