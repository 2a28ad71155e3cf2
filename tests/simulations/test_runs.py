"""Runs: how they are begun and gone on with; nothing that is asked of one is passed over in silence."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from random_weights import random_weights
from safetensors.torch import save_file

from common.backbone import Backbone
from common.errors import InputError, TaskDataError, UnsupportedModel
from simulations.experiment_cli import BEGINS, LARGE, experiment
from simulations.experiments import EXPERIMENTS
from simulations.run_directory import RunDirectory
from simulations.run_settings import RunSettings
from simulations.running import left_out, ways_of

SETTINGS = RunSettings(model="test_resnet", data="nowhere", public="")


@pytest.fixture
def path(tmp_path) -> Path:
    """Where a run has begun."""
    return RunDirectory.begin(tmp_path / "run", SETTINGS).path


def test_what_began_a_run_can_be_given_again_after_it_took_a_small_network(path):
    RunDirectory(path).hold_against("test_vit", "")
    again = RunDirectory.begin(path, SETTINGS)
    assert again.settings.small_model == "test_vit"


@pytest.fixture
def empty(tmp_path) -> Path:
    """A directory in which there are no images."""
    directory = tmp_path / "empty"
    directory.mkdir()
    return directory


def told(*words: str) -> Result:
    """What the command says until it looks for the images, which are nowhere."""
    return CliRunner().invoke(experiment, words)


GIVEN = {
    "num_classes": "--num-classes 5",
    "image_size": "--image-size 32",
    "arguments": "--argument in_chans=1",
    "checkpoint": "--checkpoint other.safetensors",
    "data": "--data photographs",
    "public": "--public photographs",
    "library_tasks": "--library-tasks 60",
    "tasks_a_seed": "--tasks 4",
    "seeds": "--seeds 3",
    "images": "--images 100",
    "large": "--large",
    "device": "--device cpu",
}
"""Parameter of the command -> how it is given; where it has a default, that is given."""


def test_every_option_of_the_command_is_known_to_begin_a_run_or_heeded_by_one_that_goes_on():
    heeded = {"names", "path", "small_model", "small_checkpoint", "only", "workers", "as_json"}
    options = {option.name for option in experiment.params}
    assert options - heeded - {"model"} == set(GIVEN)
    assert options & BEGINS == {"model", *GIVEN}


@pytest.mark.parametrize("words", GIVEN.values())
def test_what_says_how_a_run_begins_is_refused_where_one_goes_on(path, words):
    result = told("criteria", "--run", str(path), *words.split())
    assert isinstance(result.exception, InputError)
    named = words.partition("=")[0].removesuffix(" in_chans")
    assert str(result.exception).startswith(f"{named}: that is how a run begins")
    assert f"leave it out to go on with {path}, or begin another run" in str(result.exception)
    assert json.loads((path / "run.json").read_text())["commands"] == []


def test_a_checkpoint_of_a_small_network_that_is_not_named_is_refused(path):
    result = told("criteria", "--run", str(path), "--small-checkpoint", "small.safetensors")
    assert isinstance(result.exception, InputError)
    assert "small.safetensors is of a small network, and none is given; give --small" in str(
        result.exception
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one here")
def test_a_run_on_a_device_that_is_not_there_does_not_begin(tmp_path):
    words = "--backbone test_resnet --data glyphs --num-classes 5 --device cuda"
    result = told("criteria", "--run", str(tmp_path / "run"), *words.split())
    assert isinstance(result.exception, InputError)
    assert "there is no cuda device" in str(result.exception)
    assert not (tmp_path / "run").exists()


def test_what_is_given_beside_large_counts(tmp_path):
    words = "--backbone test_resnet --device cpu --num-classes 5 --large --seeds 2"
    places = ("--run", str(tmp_path / "run"), "--data", str(tmp_path))
    result = told("criteria", *places, *words.split())
    assert isinstance(result.exception, TaskDataError)
    settings = RunDirectory(tmp_path / "run").settings
    assert settings.seeds == 2
    assert settings.library_tasks == LARGE["library_tasks"]
    assert settings.tasks_a_seed == LARGE["tasks_a_seed"]


def test_a_run_is_the_same_by_every_name_of_its_models(tmp_path, empty):
    for hub in ("timm/", "", "hf-hub:timm/"):
        words = f"--backbone {hub}test_resnet --small {hub}test_vit --data {empty} --num-classes 5"
        result = told("criteria", "--run", str(tmp_path / "run"), *words.split())
        assert isinstance(result.exception, TaskDataError)  # not: a run of other settings
    settings = RunDirectory(tmp_path / "run").settings
    assert (settings.model, settings.small_model) == ("test_resnet", "test_vit")


def test_a_run_has_the_classes_of_its_checkpoint(tmp_path, empty):
    checkpoint = tmp_path / "backbone.safetensors"
    weights = random_weights(Backbone.from_timm("test_resnet", num_classes=7))
    save_file({f"module.{name}": tensor for name, tensor in weights.items()}, checkpoint)
    words = f"criteria --run {tmp_path / 'run'} --backbone test_resnet --checkpoint {checkpoint}"
    words += f" --data {empty}"
    wrong = told(*words.split(), "--num-classes", "5")
    assert isinstance(wrong.exception, InputError)
    assert "--num-classes is 5, and " in str(wrong.exception)
    assert not (tmp_path / "run").exists()
    for same in ("", "--num-classes 7"):
        assert isinstance(told(*words.split(), *same.split()).exception, TaskDataError)
    assert RunDirectory(tmp_path / "run").backbone.num_classes == 7


def test_a_run_of_a_misspelt_model_does_not_begin(tmp_path, empty):
    for words in ("--backbone test_rsnet", "--backbone test_resnet --small test_rsnet"):
        words += f" --data {empty} --num-classes 5"
        result = told("criteria", "--run", str(tmp_path / "run"), *words.split())
        assert isinstance(result.exception, UnsupportedModel)
        assert "no model 'test_rsnet'; did you mean test_resnet" in str(result.exception)
        assert not (tmp_path / "run").exists()


def test_ways_that_a_run_cannot_go_are_told_once_with_the_reason(path):
    result = told("criteria", "library-size", "healing", "--run", str(path))
    assert isinstance(result.exception, TaskDataError)
    lines = [line for line in result.stderr.splitlines() if line.startswith("left out: ")]
    assert len(lines) == 3
    assert f"left out: small network: {path} has no small network; give it one with --small" in lines
    library = next(line for line in lines if "library tasks" in line)
    assert library.endswith(
        f"200 library tasks are needed, {path} has 60; begin another run with --library-tasks 200"
    )
    healed = next(line for line in lines if "public images" in line)
    assert healed.count("SMSP healed,") == 1


def test_the_ways_left_out_are_those_that_are_not_gone(path):
    run = RunDirectory(path)
    for one in EXPERIMENTS.values():
        gone = {one.line(way) for way in one.ways} - {one.line(way) for way in ways_of(run, one)}
        names = {name for names in left_out(run, [one]).values() for name in names}
        assert gone <= names
        assert bool(names) == (len(ways_of(run, one)) < len(one.ways))
