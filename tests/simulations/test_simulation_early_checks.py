"""What is wrong with a simulation's command line is told before torch or a plotting library is imported.

In a process of its own, by the modules that it has imported in the end.
"""

import pytest
from fresh_process import call_one_by_one

COMPUTING = {"torch", "torchvision", "timm", "flwr", "ray", "matplotlib", "scipy", "sklearn"}

FLEET = "fleet --backbone resnet18 --data photographs"
BEGIN = "experiment criteria --run new --backbone resnet18"
WRONG = {
    "a demo of nothing": ("demo --keep-ratio 0%", "the keep ratio is 0.0"),
    "no photographs": ("fleet --backbone resnet18 --data no", "no is not a directory"),
    "a fleet of nothing": (f"{FLEET} --keep-ratio 0", "the keep ratio is 0.0"),
    "other alternatives": (f"{FLEET} --alternatives magic,L1", "unknown alternatives magic;"),
    "no checkpoint": (f"{FLEET} --checkpoint no", "no cannot be read"),
    "no iterations": (f"{FLEET} --iterations -1", "iterations are -1"),
    "no voters": (f"{FLEET} --neighbours 0", "0 neighbours"),
    "exploring all": (f"{FLEET} --explore 100%", "exploring 1.0"),
    "nobody at work": (f"{FLEET} --workers 0", "0 is not in the range"),
    "tasks of one class": (f"{FLEET} --ways 1", "1 is not in the range"),
    "no record": ("plot no", "no cannot be read"),
    "a record that is a text": ("plot a.text", "a.text is no record of a run"),
    "a picture in no directory": ("plot a.text --out no/x.png", "there is no directory no"),
    "no run": ("report no", "no is not a directory"),
    "a page in no directory": ("report photographs --out no/x.html", "there is no directory no"),
    "weights of nothing": (
        "pretrain --backbone resnet18 --data no --out x.safetensors",
        "no is not a directory; give one, or glyphs",
    ),
    "weights in no directory": (
        "pretrain --backbone resnet18 --data glyphs --out no/x.safetensors",
        "there is no directory no",
    ),
    "no such experiment": ("experiment magic --run new", "there is no experiment magic"),
    "no such way": ("experiment criteria --run new --only magic", "no way is called magic"),
    "a run of nothing": (BEGIN, "give --data too"),
    "a run on no photographs": (f"{BEGIN} --data no", "no is not a directory"),
    "a run healed on nothing": (f"{BEGIN} --data glyphs --public no", "no is not a directory"),
    "a run of no checkpoint": (f"{BEGIN} --data glyphs --checkpoint no", "no cannot be read"),
    "a run that is none": ("experiment criteria --run photographs", "photographs is no run"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("early")
    (place / "photographs").mkdir()
    (place / "a.text").write_text("this is a text\n")
    return place


@pytest.fixture(scope="module")
def told(place) -> tuple[dict[str, tuple[int, str]], set[str]]:
    """How each of these ended, and what all of them together imported."""
    lines = [words.split() for words, _ in WRONG.values()]
    ended, modules = call_one_by_one("simulations.cli", lines, within=place)
    sentences = [(one.status, " ".join(one.told.split())) for one in ended]
    return dict(zip(WRONG, sentences, strict=True)), modules


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told_in_a_sentence(told, name):
    status, sentence = told[0][name]
    assert (status, WRONG[name][1] in sentence) == (2, True), sentence


def test_none_of_it_waits_for_what_computes_or_draws(told):
    assert told[1] & COMPUTING == set()


def test_nothing_is_written_for_what_is_wrong(told, place):
    assert {path.name for path in place.iterdir()} == {"photographs", "a.text"}


def test_the_list_of_experiments_needs_none_of_it_either(place):
    (ended,), modules = call_one_by_one("simulations.cli", [["experiment", "--run", "new"]], within=place)
    assert ended.status == 0
    assert "criteria" in ended.told
    assert modules & COMPUTING == set()
