"""The tables of maskvote-sim in a terminal of 80 columns: nothing is cut."""

import sys
from functools import partial

import pytest
from pseudo_terminal import narrow

from simulations.cli import main
from simulations.experiments import EXPERIMENTS
from simulations.plot_cli import show_record


def test_what_a_large_fleet_came_to():
    points = ("0", "10", "25", "50", "100")
    device = {
        "error": None,
        "neighbours": [{"similarity": 0.7512}] * 10,
        "counts": [12_811_670],
        "held_parameters": 11_689_512,
        "bytes_down": 46_758_048_123,
        "bytes_up": 123_456_789,
        "seconds": {"fit": 1234.5, "tune": 12345.6},
        "accuracies": {
            way: dict.fromkeys(points, 1.0)
            for way in ("SMSP vote", "random", "L1", "scratch", "linear probe of the whole backbone")
        },
    }
    record = {
        "title": "Unseen scripts and handwritten digits of a backbone with a long name " * 2,
        "run": {"keep_ratio": 0.1},
        "units": 12_811_670,
        "backbone_parameters": 11_689_512,
        "devices": [device | {"name": f"{k:02d}-armenian-upper-{'x' * 30}"} for k in range(2)],
    }
    words = narrow(partial(show_record, record)).split()
    assert words.count("11,689,512") == 3
    assert words.count("100.0%") == 10 + 25


def test_the_experiments_that_there_are(monkeypatch):
    def experiment() -> None:
        monkeypatch.setattr(sys, "argv", ["maskvote-sim", "experiment", "--run", "a run"])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code

    assert set(EXPERIMENTS) <= set(narrow(experiment).split())
