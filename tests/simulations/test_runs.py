"""Runs: how they are begun and gone on with; nothing that is asked of one is passed over in silence."""

from pathlib import Path

import pytest

from simulations.run_directory import RunDirectory, RunSettings

SETTINGS = RunSettings(model="test_resnet", data="glyphs", public="")


@pytest.fixture
def path(tmp_path) -> Path:
    """Where a run has begun."""
    return RunDirectory.begin(tmp_path / "run", SETTINGS).path


def test_what_began_a_run_can_be_given_again_after_it_took_a_small_network(path):
    RunDirectory(path).hold_against("test_vit", "")
    again = RunDirectory.begin(path, SETTINGS)
    assert again.settings.small_model == "test_vit"
