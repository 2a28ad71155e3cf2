"""A run whose cells take seconds."""

import pytest
from glyph_run import glyph_run

from simulations.run_directory import RunDirectory


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunDirectory:
    return glyph_run(tmp_path_factory.mktemp("runs"))
