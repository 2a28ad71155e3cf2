"""Libraries to change, to damage and to hinder."""

import shutil
from pathlib import Path

import pytest
from library_tasks import WEIGHTS_DIGEST, adapt_all, request_id, stored_assignment
from sqlalchemy import event
from sqlalchemy.pool import Pool
from standing_clock import Clock

from server.library import Library


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "library.db"


@pytest.fixture
def library(path, offer):
    """An empty one."""
    with Library.create(path, offer, WEIGHTS_DIGEST) as library:
        yield library


@pytest.fixture(scope="session")
def stocked_file(offer, tmp_path_factory) -> Path:
    """A closed library of five entries, the second of which is removed; a sixth task is assigned."""
    path = tmp_path_factory.mktemp("stocked") / "library.db"
    with Library.create(path, offer, WEIGHTS_DIGEST) as library:
        adapt_all(library, range(5))
        library.assigned(stored_assignment(offer, 5))
        library.remove(request_id(1), "boss", "it is a fish")
    return path


@pytest.fixture
def stocked(stocked_file, path) -> Path:
    """A copy of that file, to be damaged."""
    shutil.copy(stocked_file, path)
    return path


@pytest.fixture
def at_checkout():
    """SQL that runs on every connection which any library is about to use."""
    statements: list[str] = []

    def run(connection, *_):
        for statement in statements:
            connection.execute(statement)

    event.listen(Pool, "checkout", run)
    yield statements
    event.remove(Pool, "checkout", run)


@pytest.fixture
def clock() -> Clock:
    return Clock()
