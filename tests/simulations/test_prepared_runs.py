"""What a run prepares once: weights, library, healed backbone; what is there is gone on with."""

import base64
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from glyph_run import SEEDED, quiet
from safetensors.torch import load_file, save_file

from common.backbone import weights_digest
from common.budget import Budget
from common.errors import InputError
from common.importance import magnitude
from common.mask import Mask
from server.budget import allot
from server.library import Library
from simulations.cells import Cells
from simulations.experiments.experiment import Experiment
from simulations.records import Cell
from simulations.run_directory import RunDirectory
from simulations.run_settings import RunSettings
from simulations.running import prepare
from simulations.way import Way


def test_a_run_is_prepared_once_and_opened_with_the_settings_that_it_began_with(run):
    again = RunDirectory(run.path)
    assert again.settings == run.settings
    assert RunDirectory.begin(run.path, run.settings).settings == run.settings
    run.hold_against(run.settings.small_model, run.settings.small_checkpoint)
    assert RunDirectory(run.path).settings == run.settings
    before = (run.path / "library.db").stat().st_mtime_ns
    prepare(again, [SEEDED], workers=1, watch=quiet)
    assert len(again.entries) == 3
    assert (run.path / "library.db").stat().st_mtime_ns == before
    lines = (run.path / "library.jsonl").read_text().splitlines()
    assert [json.loads(line)["name"] for line in lines] == [c.name for c in run.library_choices]


def test_a_directory_that_is_no_run_or_another_run_is_refused(run, tmp_path):
    with pytest.raises(InputError, match=r"no run\.json"):
        RunDirectory(tmp_path)
    other = RunSettings(**{**vars(run.settings), "images": 7})
    with pytest.raises(InputError, match="was begun with images 6, now it is 7; leave out --backbone"):
        RunDirectory.begin(run.path, other)
    with pytest.raises(InputError, match="already holds its ways against test_resnet"):
        RunDirectory.begin(run.path, replace(run.settings, small_model="resnet18"))
    with pytest.raises(InputError, match="already holds its ways against test_resnet"):
        run.hold_against("resnet18", "")


@pytest.mark.parametrize("name", ["backbone", "small"])
def test_a_run_goes_on_with_the_very_weights_that_it_was_measured_on(run, tmp_path, name):
    """Another checkpoint of the same name fits, and its cells would be of another network."""
    file, setting = tmp_path / "own.safetensors", {"backbone": "checkpoint", "small": "small_checkpoint"}
    file.write_bytes(Path(run.settings.checkpoint).read_bytes())
    own = RunDirectory.begin(tmp_path / "own", replace(run.settings, **{setting[name]: str(file)}))
    ways = (Way("small network"), Way("L1"))
    experiment = Experiment("", "", ways if name == "small" else ways[1:], "way", ways[1])
    prepare(own, [experiment], workers=1, watch=quiet)
    digests = json.loads((own.path / "run.json").read_text())["digests"]
    assert digests == dict.fromkeys({"backbone", name}, weights_digest(run.weights))
    prepare(RunDirectory(own.path), [experiment], workers=1, watch=quiet)

    before = (own.path / "run.json").read_bytes()
    save_file({k: v + 1 for k, v in load_file(file).items()}, file)
    with pytest.raises(InputError, match=r"own\.safetensors has weights of digest .* was measured on"):
        prepare(RunDirectory(own.path), [experiment], workers=1, watch=quiet)
    assert (own.path / "run.json").read_bytes() == before
    file.write_bytes(Path(run.settings.checkpoint).read_bytes())
    prepare(RunDirectory(own.path), [experiment], workers=1, watch=quiet)


def test_a_library_is_seeded_only_for_ways_that_ask_it(run, tmp_path):
    """Seeding takes as long as hundreds of cells: who asks how long to heal need not wait for it."""
    other = RunDirectory.begin(tmp_path / "other", run.settings)
    ways = (Way("L1"), Way("twin"), Way("SMSP", entries=0), Way("L1", healing="empty"))
    stages = []
    prepare(other, [Experiment("", "", ways, "way", ways[0])], 1, lambda stage, *_: stages.append(stage))
    told = {"reading images", "founding the library", "healing the backbone (empty)"}
    assert set(stages) == told
    assert other.entries == []
    seed, choice = other.new_choices(["new"])[0]
    records = [Cells(other).measure(Cell(seed, choice, replace(way, iterations=1))) for way in ways]
    assert [record.error for record in records] == [None] * len(ways)

    prepare(other, [SEEDED], workers=1, watch=quiet)
    assert len(RunDirectory(other.path).entries) == run.settings.library_tasks


@pytest.fixture
def published(run, tmp_path) -> Path:
    """What of a run is published: its settings and records, no library."""
    place = tmp_path / "published"
    place.mkdir()
    for name in ("run.json", "structure.json", "library.jsonl"):
        (place / name).write_bytes((run.path / name).read_bytes())
    return place


def test_a_published_run_goes_on_with_the_masks_that_its_records_tell(run, published):
    """Not with masks found anew, which are others elsewhere: here, one is changed by hand."""
    lines = (published / "library.jsonl").read_text().splitlines()
    changed = json.loads(lines[0])
    other = ~run.entries[0].mask.kept
    assert all(Mask(run.structure, other)[name].any() for name in run.structure.starts)
    changed["mask"] = base64.b64encode(np.packbits(other).tobytes()).decode()
    (published / "library.jsonl").write_text("\n".join([json.dumps(changed), *lines[1:]]) + "\n")
    again = RunDirectory(published)
    prepare(again, [SEEDED], workers=1, watch=quiet)
    assert np.array_equal(again.entries[0].mask.kept, other)
    assert [entry.mask for entry in again.entries[1:]] == [entry.mask for entry in run.entries[1:]]
    for mine, theirs in zip(again.entries, run.entries, strict=True):
        assert (mine.entry, mine.signature.digest) == (theirs.entry, theirs.signature.digest)
        assert mine.iterations == theirs.iterations
        assert (mine.accuracy_before, mine.accuracy_after) == pytest.approx(
            (theirs.accuracy_before, theirs.accuracy_after), abs=1e-4
        )
    assert json.loads((published / "library.jsonl").read_text().splitlines()[0]) == changed


def test_masks_of_tasks_that_a_run_does_not_draw_are_refused(published):
    lines = [json.loads(line) for line in (published / "library.jsonl").read_text().splitlines()]
    lines[0]["classes"] = lines[0]["classes"][::-1]
    (published / "library.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InputError, match="of other classes than this run draws"):
        prepare(RunDirectory(published), [SEEDED], workers=1, watch=quiet)


def test_masks_of_other_groups_are_refused_each_time(published):
    told = json.loads((published / "structure.json").read_text())
    told["groups"][0][0] = "stem.weight:0"
    (published / "structure.json").write_text(json.dumps(told))
    for _ in range(2):
        with pytest.raises(InputError, match=r"tells of other groups than .* remove library\.jsonl"):
            prepare(RunDirectory(published), [SEEDED], workers=1, watch=quiet)
    (published / "library.jsonl").unlink()
    prepare(RunDirectory(published), [], workers=1, watch=quiet)


def test_a_library_grows_by_what_devices_give_back_and_one_of_echoes_only_repeats(run):
    grown, echoed = (run.path / f"{kind}.db" for kind in ("grown", "echoed"))
    for kind in ("grown", "echoed"):
        run.grow(kind, lambda done, total: None)
    with Library.open(echoed) as library:
        counts = allot(run.structure, Budget(keep_ratio=run.settings.keep_ratio), 5)
        importance = Mask.keep_top(run.structure, magnitude(run.weights, run.structure), counts)
        assert {entry.mask for entry in library.entries()} == {importance}
    with Library.open(grown) as library:
        masks = [entry.mask for entry in library.entries()]
        assert len(set(masks)) == len(masks) == 3
    seed, choice = run.new_choices(["new"])[0]
    for kind in ("grown", "echoed"):
        way = Way("SMSP", iterations=1, keep_ratio=0.3, library=kind, entries=2)
        record = Cells(run).measure(Cell(seed, choice, way))
        assert record.error is None
        assert len(record.facts["similarities"]) == 2


def test_a_backbone_is_healed_as_long_as_a_way_says(run):
    """For as long as the run says, too, it is the run's own; healed for nothing, it is as it was."""
    ways = [Way("L1", iterations=1)] + [
        Way("L1", iterations=1, healing="empty", healing_iterations=length) for length in (0, 3, 6)
    ]
    prepare(run, [Experiment("", "", tuple(ways), "way", ways[0])], workers=1, watch=quiet)
    own, none, three, six = (run.healed.weights("empty", length) for length in (None, 0, 3, 6))
    assert none["fc.weight"].shape == run.weights["fc.weight"].shape
    assert all(torch.equal(tensor, none[name]) for name, tensor in run.weights.items())
    assert all(torch.equal(tensor, own[name]) for name, tensor in three.items())
    assert not all(torch.equal(tensor, own[name]) for name, tensor in six.items())
    seed, choice = run.new_choices(["new"])[0]
    plain, unhealed, *_ = (Cells(run).measure(Cell(seed, choice, way)).values for way in ways)
    assert plain == unhealed
