"""Settings of a run: one flat table for both sides, read once, and every problem named at once."""

import tomllib
from dataclasses import asdict
from pathlib import Path

import pytest

from common.budget import Budget
from common.errors import InputError
from common.privacy import Privacy
from common.settings import Config, DeviceSettings, FleetSettings, device_settings, fleet_settings
from server.settings import VotingSettings

ROOT = Path(__file__).parents[2]
LIBRARY = {"library": "/tmp/library.db"}


def table() -> dict:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return project["tool"]["flwr"]["app"]["config"]


def test_the_project_lists_every_setting_with_its_default():
    assert fleet_settings(table() | LIBRARY) == FleetSettings(Path("/tmp/library.db"))
    settings, node = device_settings(table(), {})
    assert settings == DeviceSettings()
    assert set(asdict(node).values()) == {None}
    fields = asdict(FleetSettings(Path("x"))) | asdict(DeviceSettings())
    assert set(table()) == {name.replace("_", "-") for name in fields}


def test_voting_has_the_same_defaults_in_a_run_as_elsewhere():
    settings = FleetSettings(Path("x"))
    assert VotingSettings() == VotingSettings(settings.neighbours, settings.explore, prior=settings.prior)


def test_every_problem_is_named_at_once():
    config: Config = {
        "librari": "x",
        "at-once": 0,
        "devices": "two",
        "explore": 1.0,
        "heal-seconds": 0,
        "report": 3,
        "iterations": 5,
    }
    with pytest.raises(InputError) as refused:
        fleet_settings(config)
    for problem in (
        "library is not given",
        "librari is unknown",
        "at-once is 0",
        "devices is 'two'; it is a whole number",
        "explore is 1.0",
        "heal-seconds is 0",
        "report is 3; it is text",
    ):
        assert problem in str(refused.value)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"iterations": -1}, "iterations are -1"),
        ({"iterations": True}, "iterations is True; it is a whole number"),
        ({"learning-rate": 0}, "learning_rate is 0"),
        ({"method": "best"}, "method is 'best'; choose smsp or mvp"),
        ({"keep-ratio": 1.5}, "the keep ratio is 1.5"),
        ({"headroom": 0.5}, "the headroom is 0.5"),
        ({"parameters": -1}, "parameters is -1"),
        ({"wait-seconds": -1}, "the wait is -1.0 seconds"),
        ({"threads": -1}, "threads is -1"),
        ({"evaluate-at": "10,ten"}, "evaluate-at is '10,ten'; it is whole numbers in text"),
        ({"evaluate-at": 10}, "evaluate-at is 10"),
        ({"epsilon": -1}, "epsilon is -1"),
        ({"epsilon": float("nan")}, "epsilon is nan"),
        ({"epsilon": 1e6}, "epsilon is 1000000"),
        ({"epsilon": 8, "delta": 1}, "delta is 1"),
        ({"epsilon": "8"}, "epsilon is '8'; it is a number"),
        ({"unheard-of": 1}, "unheard-of is unknown"),
    ],
)
def test_a_setting_of_the_devices_that_is_no_use_is_refused(config, says):
    with pytest.raises(InputError, match=says):
        device_settings(config, {})


def test_a_node_wins_over_its_run_and_keeps_keys_that_are_not_ours():
    node_config: Config = {
        "iterations": 7,
        "partition-id": 3,
        "data-path": "/data",
        "of-another-app": True,
    }
    settings, node = device_settings({"iterations": 5, "seed": 2}, node_config)
    assert (settings.iterations, settings.seed) == (7, 2)
    assert (node.partition_id, node.data_path, node.state_dir) == (3, Path("/data"), None)


def test_a_node_wins_over_given_settings_which_stand_for_the_run():
    settings, _ = device_settings({}, {"seed": 9}, DeviceSettings(seed=1, iterations=4))
    assert (settings.seed, settings.iterations) == (9, 4)


def test_every_problem_of_a_node_is_named_at_once():
    with pytest.raises(InputError, match=r"seed is 'x'.*partition-id is 'y'"):
        device_settings({}, {"seed": "x", "partition-id": "y"})


@pytest.mark.parametrize(
    ("run", "node", "budget"),
    [
        ({}, {}, Budget(keep_ratio=0.1)),
        ({"parameters": 500}, {}, Budget(parameters=500)),
        ({"parameters": 500}, {"keep-ratio": 0.2}, Budget(keep_ratio=0.2)),
        ({"keep-ratio": 0.2}, {"parameters": 500, "headroom": 2}, Budget(parameters=500, headroom=2)),
    ],
)
def test_a_budget_is_parameters_where_given_and_a_nodes_own_replaces_the_runs(run, node, budget):
    assert device_settings(run, node)[0].budget == budget


@pytest.mark.parametrize(
    ("run", "node", "privacy"),
    [
        ({}, {}, None),
        ({"epsilon": 0}, {}, None),
        ({"epsilon": 8}, {}, Privacy(8)),
        ({"epsilon": 2.5, "delta": 1e-6}, {}, Privacy(2.5, 1e-6)),
        ({"epsilon": 0.0}, {"epsilon": 1}, Privacy(1)),
    ],
)
def test_noise_is_off_unless_asked_for_and_a_node_has_the_last_word(run, node, privacy):
    assert device_settings(run, node)[0].privacy == privacy
