"""maskvote-server inspect: tables that people read, JSON that scripts do, a sentence on bad input."""

import json
import sys

import pytest

from common.command_line import run
from server.cli import cli
from server.proved_table import cache_directory


@pytest.fixture
def inspect(monkeypatch, capfd):
    """Runs the command and gives its exit status, what it printed, and what it told beside that."""

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["maskvote-server", "inspect", *words])
        with pytest.raises(SystemExit) as exit_:
            run(cli)
        printed, told = capfd.readouterr()
        return int(exit_.value.code), printed, told

    return call


def rows(printed: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in printed.splitlines()
        if line.startswith("│")
    ]


def test_layers_that_are_alike_stand_in_one_row(inspect):
    status, printed, told = inspect("test_vit", "--image-size", "32")
    assert (status, told) == (0, "")
    assert "test_vit for 3 x 32 x 32 inputs and 1,000 classes" in printed
    assert "12 of 12 groups are proved" in printed
    assert "Attention: heads of 6 of 6 modules can be cut" in printed
    table = rows(printed)
    assert ["blocks.{0..5}.attn.qkv.weight:0", "internal", "2", "exact"] in [row[:4] for row in table]
    assert ["head.weight:0", "it is the network's output"] in table


def test_in_full_every_layer_has_a_row(inspect):
    table = rows(inspect("test_vit", "--image-size", "32", "--full")[1])
    names = [row[0] for row in table]
    assert [f"blocks.{index}.attn.qkv.weight:0" in names for index in range(6)] == [True] * 6
    assert not [name for name in names if "{" in name]


def test_costs_that_differ_in_one_row_are_a_range(inspect):
    table = rows(inspect("test_resnet", "--image-size", "32")[1])
    assert any("-" in row[4] for row in table if len(row) == 7)
    first = next(row for row in table if row[0] == "smallest, internal groups cut")
    assert first[1] == "7"


def test_json_is_the_same_from_the_cache_as_afresh(inspect):
    words = ("test_resnet", "--image-size", "32", "--json", "--num-classes", "7")
    first, second, fresh = (json.loads(inspect(*words, *more)[1]) for more in ((), (), ("--fresh",)))
    assert first == second
    assert first["classes"] == 7
    assert first["digest"] == fresh["digest"]
    assert first["seconds"] != fresh["seconds"]


def test_without_time_nothing_is_proved_and_that_is_said(inspect):
    words = ("test_resnet", "--image-size", "40", "--seconds", "0")
    status, printed, _ = inspect(*words)
    assert status == 0
    assert "0 of 11 groups are proved" in printed
    assert "unchecked: the proof took longer than 0 seconds" in printed
    told = json.loads(inspect(*words, "--json")[1])
    assert {group["verdict"] for group in told["groups"]} == {"unchecked"}
    assert told["smallest"]["internal"]["parameters"] == told["parameters"]


@pytest.mark.parametrize("argument", ["embed_dim=32", "depth=2"])
def test_an_argument_that_changes_the_structure_gives_another_one(inspect, argument):
    words = ("test_vit", "--image-size", "32", "--json")
    plain = json.loads(inspect(*words)[1])
    files = len(list(cache_directory().iterdir()))
    other = json.loads(inspect(*words, "--argument", argument)[1])
    assert other["digest"] != plain["digest"]
    assert other["parameters"] < plain["parameters"]
    key, _, value = argument.partition("=")
    assert other["identity"]["arguments"][key] == int(value)
    assert len(list(cache_directory().iterdir())) == files + 1
    assert json.loads(inspect(*words)[1]) == plain


BAD = {
    "an unknown model": ("resnet1", "has no model 'resnet1'; did you mean resnet"),
    "a pattern without a match": ("--all resent5*", "matches 'resent5*'; did you mean resnet5"),
    "an argument that timm refuses": (
        "test_resnet --argument depth=3",
        "timm refuses test_resnet with {'depth': 3}: ",
    ),
    "an argument of a wrong kind": ("test_vit --argument embed_dim=big", "with {'embed_dim': 'big'}: "),
    "an argument that loads a file": ("test_vit --argument checkpoint_path=x", "checkpoint_path"),
    "an argument without a value": ("test_vit --argument depth", "'depth' is not KEY=VALUE"),
    "no size": ("test_vit --image-size 0", "0 is not in the range x>=1"),
    "a negative size": ("test_vit --image-size -1", "-1 is not in the range x>=1"),
    "a size below a patch": ("vit_tiny_patch16_224 --image-size 7", "inputs of (3, 7, 7)"),
    "a size between patches": ("test_vit --image-size 33", "should be divisible by patch size (16)"),
    "a size that pools to nothing": ("vgg11 --image-size 7", "Output size is too small"),
    "no classes": ("test_resnet --num-classes 0", "0 is not in the range x>=1"),
    "no time at all": ("test_vit --seconds -1", "-1"),
    "neither a model nor a pattern": ("--json", "either a MODEL, or --all or --models"),
    "a model and a pattern": ("test_vit --all test_*", "either a MODEL, or --all or --models"),
    "a list that is not there": ("--models nowhere.txt", "nowhere.txt cannot be read"),
}


@pytest.mark.parametrize(("words", "sentence"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_sentence_with_what_to_do(inspect, words, sentence):
    status, printed, told = inspect(*words.split())
    assert (status, printed) == (2, "")
    assert sentence in " ".join(told.split())
    last = told.splitlines()[-1]
    assert last.lower().startswith("error: ")
    assert len(last) < 400
    if last.startswith("error: "):
        assert told.count("\n") == 1, told
        assert any(
            word in last for word in ("did you mean", "choose", "at least", "give", "load", "check")
        ), last


def test_a_damaged_cache_is_a_warning_and_changes_nothing(inspect, tmp_path, monkeypatch):
    monkeypatch.setenv("MASKVOTE_CACHE", str(tmp_path))
    words = ("test_resnet", "--image-size", "32", "--json")
    first = json.loads(inspect(*words)[1])
    (path,) = (tmp_path / "structures").iterdir()
    path.write_bytes(path.read_bytes()[:1000])
    status, printed, _ = inspect(*words)
    assert status == 0
    assert json.loads(printed)["digest"] == first["digest"]


def test_a_sweep_shows_every_model_and_sums_up(inspect, tmp_path):
    """With a limit that none can keep: what a sweep records of others stands in test_sweep."""
    (tmp_path / "models.txt").write_text("# two\ntest_resnet\n\ntest_vit  # the second\n")
    words = ("--models", str(tmp_path / "models.txt"), "--limit", "0.05", "--image-size", "32")
    status, printed, _ = inspect(*words)
    assert status == 0
    assert [row[0] for row in rows(printed)] == ["test_resnet", "test_vit"]
    assert "it took longer than 0.05 seconds" in printed
    assert "2 over the limit" in printed
    told = json.loads(inspect(*words, "--json")[1])
    assert told["summary"]["models"] == told["summary"]["over_the_limit"] == 2
    assert [model["model"] for model in told["models"]] == ["test_resnet", "test_vit"]
