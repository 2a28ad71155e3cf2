"""Many models, each in a process of its own: records, limits, and going on where it stopped."""

import json
from pathlib import Path

import pytest

from common.errors import InputError, UnsupportedModel
from server.sweep import Record, models_matching, read_records, sweep

SETTINGS = ("--image-size", "32")


def record(
    model: str = "model", internal=(2, 2), residual=(1, 1), heads=(True, True), **others
) -> Record:
    """A record of so many groups (proved, found) of each kind, and whether heads of modules are cut."""
    counts = {"internal": internal, "residual": residual}
    inspected = {
        "proved": {kind: count[0] for kind, count in counts.items()},
        "found": {kind: count[1] for kind, count in counts.items()},
        "attention": {str(index): cut for index, cut in enumerate(heads)},
    }
    return Record(model, SETTINGS, "inspected", 1.0, inspection=inspected, **others)


@pytest.mark.parametrize(
    ("record", "right"),
    [
        (record(), (True, True, True)),
        (record(heads=()), (True, True, True)),
        (record(residual=(0, 1)), (True, True, False)),
        (record(heads=(True, False)), (True, False, False)),
        (record(internal=(1, 2)), (False, False, False)),
        (record(internal=(0, 0)), (False, False, False)),
        (Record("model", (), "unsupported", 1.0, "for a reason"), (False, False, False)),
    ],
)
def test_a_model_is_right_when_all_that_was_found_is_proved_and_heads_are_cut(record, right):
    assert (record.internal_right, record.heads_right, record.all_right) == right


def test_patterns_name_models_once_in_their_order():
    models = models_matching(["test_vit,test_resnet", "test_vi?"])
    assert models == ["test_vit", "test_resnet"]
    assert {"resnet18", "resnet50"} <= set(models_matching(["resnet*"]))
    assert models_matching(["resnet18.a1_in1k", "timm/resnet18.a1_in1k"]) == ["resnet18.a1_in1k"]
    assert models_matching(["hf-hub:timm/test_vi?"]) == ["test_vit"]


@pytest.mark.parametrize(
    ("patterns", "told"),
    [
        (["test_vit", "resent18*"], r"matches 'resent18\*'; did you mean .*resnet18"),
        (["0*"], r"matches '0\*'; see timm\.list_models"),
        (["q"], r"no model 'q'; see timm\.list_models"),
        (["resnet18.a1"], r"no model 'resnet18\.a1'.*did you mean .*resnet18\.a1_in1k"),
        ([" , "], "no pattern was given"),
    ],
)
def test_a_pattern_without_a_match_is_told_with_near_names(patterns, told):
    with pytest.raises(UnsupportedModel, match=told):
        models_matching(patterns)


def test_a_sweep_records_every_model_and_goes_on_where_it_stopped(tmp_path):
    """One that works and one that refuses the size; then one more, and nothing is done again."""
    out, told = tmp_path / "out.jsonl", []
    first = sweep(["test_resnet", "test_vit"], ("--image-size", "33"), jobs=2, out=out)
    assert [r.status for r in first] == ["inspected", "unsupported"]
    assert first[0].heads_right
    assert "divisible by patch size" in first[1].error
    assert sorted(json.loads(line)["model"] for line in out.read_text().splitlines()) == [
        "test_resnet",
        "test_vit",
    ]
    with out.open("a") as file:
        file.write('{"model": "test_conv')  # stopped amid a line
    before = out.read_text().splitlines()[:2]
    again = sweep(
        ["test_vit", "test_resnet"],
        ("--image-size", "33"),
        out=out,
        watch=lambda *step: told.append(step),
    )
    assert told == [(2, 2, "")]
    assert again == first[::-1]
    assert out.read_text().splitlines() == before


def test_a_model_that_takes_too_long_is_ended_and_recorded(tmp_path):
    (only,) = sweep(["test_resnet"], SETTINGS, limit=0.2, out=tmp_path / "out.jsonl")
    assert (only.status, only.error) == ("over the limit", "it took longer than 0.2 seconds")
    assert read_records(tmp_path / "out.jsonl", SETTINGS) == {"test_resnet": only}


def test_a_process_that_dies_is_a_record_too(tmp_path, monkeypatch):
    """A stand-in for Python that kills itself."""
    dying = tmp_path / "python"
    dying.write_text("#!/bin/sh\necho last words >&2\nkill -9 $$\n")
    dying.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(dying))
    (only,) = sweep(["test_resnet"])
    assert (only.status, only.error) == ("crashed", "exit status -9: last words")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (json.dumps({"settings": ["--image-size", "64"]}) + "\n", "no records"),
        ("text\n", "no records"),
        ("[1]\n", "no records"),
    ],
)
def test_a_file_of_something_else_is_left_alone(tmp_path, content, told):
    path: Path = tmp_path / "out.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match=told):
        sweep(["test_resnet"], SETTINGS, out=path)
    assert path.read_text() == content


def test_records_of_other_settings_are_not_mixed_in(tmp_path):
    path: Path = tmp_path / "out.jsonl"
    sweep(["test_resnet"], SETTINGS, limit=0.01, out=path)
    with pytest.raises(InputError, match="was made with --image-size 32, not none"):
        sweep(["test_vit"], out=path)


def test_a_file_that_cannot_be_written_is_told(tmp_path):
    with pytest.raises(InputError, match="cannot be written"):
        sweep(["test_resnet"], SETTINGS, limit=0.01, out=tmp_path / "no" / "out.jsonl")
