"""A device's images, and a library that its server holds: empty, so that importance decides."""

import logging
import shutil
import sys
from pathlib import Path

import pytest
import structlog
from drawn_images import draw_images
from grpc_server import running_server

from client import patience
from client.adapt import describe
from client.cli import main
from common.backbone import weights_digest
from common.task_data import Task, load_folder
from common.user_directories import maskvote_cache
from server.library import Library


@pytest.fixture(scope="module", autouse=True)
def _servers_say_nothing():
    """What a server logs would stand among what a device says, as both are in this process."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


@pytest.fixture(autouse=True)
def _no_probe_is_kept_yet():
    """A test's downloads are the same alone and after any other, in processes of their own too."""
    shutil.rmtree(maskvote_cache("probes"), ignore_errors=True)


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
def client(monkeypatch, capsys, tmp_path):
    """A command of maskvote-client, run here: its exit status, and what it printed."""

    def client(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["maskvote-client", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        told = capsys.readouterr()
        return ended.value.code or 0, told.out, " ".join(told.err.split())

    monkeypatch.chdir(tmp_path)
    return client


@pytest.fixture
def hasty(monkeypatch):
    """Attempts follow each other at once."""
    monkeypatch.setattr(patience, "SHORTEST_SECONDS", 0.01)
    monkeypatch.setattr(patience, "LONGEST_SECONDS", 0.05)
