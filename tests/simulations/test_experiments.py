"""Experiments: from one command to records, on a small run of glyphs; what fails stops nothing."""

import json
from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from click.testing import CliRunner
from glyph_run import quiet
from pseudo_terminal import narrow

from common.backbone import Backbone
from common.errors import InputError
from simulations.cells import WAYS
from simulations.cli import cli
from simulations.experiment_cli import _show
from simulations.experiments import EXPERIMENTS
from simulations.experiments.experiment import Experiment
from simulations.pools import open_pool
from simulations.records import Record, pending, read_records
from simulations.run_directory import RunDirectory
from simulations.running import cells_of, measure, ways_of
from simulations.similarities import SIMILARITIES
from simulations.tasks import draw_mixture
from simulations.way import Way


def test_fresh_tasks_are_no_other_experiments(run):
    fresh, others = run.new_choices(["fresh"]), run.new_choices(["new", "five", "shifted"])
    assert [seed for seed, _ in fresh] == [0, 1]
    assert not {choice.classes for _, choice in fresh} & {choice.classes for _, choice in others}


def test_a_cell_that_fails_is_recorded_and_the_others_are_measured(run, monkeypatch):
    one = Experiment(
        "", "", (Way("no such mask"), Way("L1", iterations=1)), "way", Way("L1", iterations=1)
    )
    failed = measure(run, [one], workers=1, watch=quiet)
    assert [record.error for record in failed] == ["KeyError: 'no such mask'"] * 2
    kept = {record.key: record for record in read_records(run.cells)}
    assert all(kept[cell.key].error is None for cell in cells_of(run, one) if cell.way.mask == "L1")
    # What is measured is not measured again.
    waiting = pending(cells_of(run, one), kept.values())
    assert {cell.way.mask for cell in waiting} == {"no such mask"}


def test_ways_that_want_a_larger_library_are_left_out(run):
    sizes = {cell.way.entries for cell in cells_of(run, EXPERIMENTS["library-size"])}
    assert sizes == {0}


def test_every_experiment_names_known_ways_and_is_held_against_one_of_its_own():
    for name, experiment in EXPERIMENTS.items():
        assert experiment.name == name
        assert experiment.against in experiment.ways
        assert len(set(experiment.ways)) == len(experiment.ways)
        for way in experiment.ways:
            assert way.mask in WAYS
            assert way.similarity in SIMILARITIES
            assert experiment.x in ("way", "iterations") or hasattr(way, experiment.x)


def test_a_longer_mixture_of_tasks_begins_like_a_shorter_one():
    long, short = (draw_mixture(80, n, (10, 5), np.random.default_rng(0), "t") for n in (40, 12))
    assert long[:12] == short
    assert {choice.domain for choice in long} > {"plain", "grey", "inverted"}
    assert {len(choice.classes) for choice in long} == {5, 10}


def test_in_a_mixture_of_ten_and_five_classes_only_random_tasks_of_five_are_in_another_domain():
    drawn = draw_mixture(80, 40, (10, 5), np.random.default_rng(0), "t")
    kinds = Counter(
        (choice.name.split("-")[1], len(choice.classes), choice.domain == "plain") for choice in drawn
    )
    assert kinds == {
        ("close", 10, True): 10,
        ("random", 10, True): 10,
        ("close", 5, True): 10,
        ("random", 5, False): 10,
    }


def test_glyphs_are_a_pool_for_any_number_of_channels(monkeypatch):
    monkeypatch.setattr("simulations.pools.GLYPH_POOLS", {"glyphs": ("lao", "nko")})
    for channels in (1, 3):
        backbone = Backbone.from_timm(
            "test_resnet", num_classes=5, image_size=16, arguments={"in_chans": channels}
        )
        pool = open_pool("glyphs", backbone)
        assert pool.train[0].shape[1:] == (channels, 16, 16)
        assert len(pool.names) == len(pool.train) == len(pool.evaluation) > 30


def test_the_command_tells_what_there_is_and_refuses_what_there_is_not(tmp_path):
    told = CliRunner().invoke(cli, ["experiment", "--run", str(tmp_path)], terminal_width=200)
    assert told.exit_code == 0
    assert all(name in told.output for name in EXPERIMENTS)
    unknown = CliRunner().invoke(cli, ["experiment", "voting", "--run", str(tmp_path)])
    assert isinstance(unknown.exception, InputError)
    assert "there is no experiment voting; there are confirmation" in str(unknown.exception)
    nowhere = CliRunner().invoke(cli, ["experiment", "criteria", "--run", str(tmp_path)])
    assert isinstance(nowhere.exception, InputError)


def test_ways_that_a_run_cannot_go_are_left_out(run):
    ways = tuple(
        Way(mask, entries=entries, healing=healing)
        for mask, entries, healing in (
            ("SMSP", 3, "none"),
            ("SMSP", 4, "none"),
            ("SMSP", 3, "library"),
            ("small network", None, "none"),
        )
    )
    asked = Experiment("", "", ways, "way", ways[0])
    poor = RunDirectory(run.path)
    poor.settings = replace(run.settings, public="", small_model="")
    assert ways_of(run, asked) == [ways[0], ways[2], ways[3]]
    assert ways_of(poor, asked) == [ways[0]]


def test_the_command_goes_on_with_a_run(run):
    """What the experiment lacks is measured; here that is nothing, as its library is too small."""
    words = ["experiment", "library-size", "--run", str(run.path), "--workers", "1", "--json"]
    result = CliRunner().invoke(cli, [*words, "--only", "SMSP, MVP one-shot"])
    assert result.exit_code == 0, result.output
    records = json.loads(result.stdout)
    assert {record["way"]["entries"] for record in records} == {0}
    assert len(records) == 2
    assert f"left out: SMSP, MVP one-shot: 5 library tasks are needed, {run.path} has 3" in result.stderr
    for names in ("L1", "SMSP,L1"):
        none = CliRunner().invoke(cli, [*words, "--only", names])
        assert isinstance(none.exception, InputError)
        assert "library-size: no way is called L1; there are SMSP, MVP one-shot" in str(none.exception)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_what_an_experiment_measured_is_whole_in_a_terminal_of_80_columns(run, name):
    experiment = EXPERIMENTS[name]
    values = dict.fromkeys([*(f"at {k}" for k in experiment.evaluate_at), experiment.value], 1.0)
    records = [Record(c.seed, c.task.name, c.way, values) for c in cells_of(run, experiment)]
    narrow(partial(_show, run, experiment, records))
