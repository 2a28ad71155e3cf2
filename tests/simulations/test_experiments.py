"""Experiments: from one command to records, on a small run of glyphs; what fails stops nothing."""

import base64
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from glyph_tasks import glyph_backbone, random_weights
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode

from common.backbone import Backbone, weights_digest
from common.budget import Budget
from common.errors import InputError
from common.fine_tune import FineTuneSettings
from common.importance import magnitude
from common.mask import Mask
from common.pruning import PruningSettings
from server.budget import allot
from server.healing.drawn_votes import KeepRatios
from server.healing.heal import HealingSettings, heal_mask
from server.healing.heal_library import store_of
from server.library import Library
from simulations.baselines import MASKS
from simulations.cells import WAYS, Cells
from simulations.cli import cli
from simulations.contest import Contest
from simulations.experiments import EXPERIMENTS
from simulations.experiments.experiment import Experiment
from simulations.glyphs import SCRIPTS, render
from simulations.pools import open_pool
from simulations.provenance import commit
from simulations.records import Cell, Record, pending, read_records
from simulations.run_directory import RunDirectory, RunSettings
from simulations.running import cells_of, measure, prepare, ways_of
from simulations.similarities import SIMILARITIES
from simulations.tasks import draw_mixture
from simulations.voters import VOTES, Voters, with_prior
from simulations.way import Way

SEEDED = Experiment("", "", (Way("SMSP"),), "way", Way("SMSP"))
"""One that asks the library, and nothing else of a run."""


def quiet(stage: str, done: int, total: int) -> None:
    """Nobody looks."""


def write_pool(path: Path, characters: str, train: int, evaluation: int) -> str:
    """Printed characters as a directory of images; its path."""
    pixels, labels = render(characters, train + evaluation, size=32, seed=len(characters))
    for k in range(len(characters)):
        for number, image in enumerate(pixels[labels == k]):
            folder = path / ("train" if number < train else "val") / f"{k:02}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{number:03}.png")
    return str(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunDirectory:
    path = tmp_path_factory.mktemp("runs") / "glyphs"
    backbone = glyph_backbone()
    save_file(random_weights(backbone), path.with_name("backbone.safetensors"))
    settings = RunSettings(
        model=backbone.model,
        data=write_pool(path.with_name("tasks"), "".join(SCRIPTS["latin_upper"][:20]), 12, 4),
        public=write_pool(path.with_name("public"), "".join(SCRIPTS["greek"][:5]), 12, 1),
        checkpoint=str(path.with_name("backbone.safetensors")),
        num_classes=backbone.num_classes,
        image_size=32,
        arguments={"in_chans": 1},
        library_tasks=3,
        tasks_a_seed=1,
        seeds=2,
        images=6,
        keep_ratio=0.3,
        seeding=FineTuneSettings(iterations=2),
        seed_pruning=PruningSettings(rounds=1),
        healing=HealingSettings(iterations=3, batch_size=8),
        heal_ratios=KeepRatios(0.2, 0.5),
    )
    run = RunDirectory.begin(path, settings)
    run.hold_against(backbone.model, settings.checkpoint)
    ways = tuple(Way("SMSP", healing=healing) for healing in ("library", "empty"))
    healed = Experiment("", "", ways, "way", Way("SMSP"))
    prepare(run, [healed], workers=1, watch=quiet)
    return run


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
    with pytest.raises(InputError, match="other settings: images 6, not 7; leave out --backbone"):
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


@pytest.mark.parametrize("mask", WAYS)
def test_every_way_is_measured(run, mask):
    seed, choice = run.new_choices(["new"])[0]
    cell = Cell(seed, choice, Way(mask, keep_ratio=0.3, iterations=2, neighbours=2))
    record = Cells(run).measure(cell, (0, 1))
    assert record.error is None, record.error
    if mask == "neighbours":
        assert set(record.values) <= {"recall"}
    else:
        accuracies = {name for name in record.values if name != "recall"}
        assert (
            accuracies == {"at 0", "after"}
            if mask == "linear probe"
            else {"at 0", "at 1", "at 2", "after"}
        )
        assert all(0 <= value <= 1 for value in record.values.values())


@pytest.mark.parametrize(
    "way",
    [
        *(
            Way("SMSP", healing=healing, healing_iterations=3)
            for healing in ("library", "empty", "mask", "nearest")
        ),
        *(Way("SMSP", similarity=name) for name in SIMILARITIES),
        Way("SMSP", probe="backbone"),
        Way("SMSP", epsilon=8.0, images=4),
        Way("SMSP", entries=0),
        Way("dense", healing="library"),
        Way("twin", seeding_iterations=3),
    ],
    ids=lambda way: " ".join(map(str, way.to_json().values())),
)
def test_every_field_of_a_way_is_heeded_without_an_error(run, way):
    seed, choice = run.new_choices(["five"])[0]
    data = way.to_json() | {"iterations": 1, "keep_ratio": 0.3}
    record = Cells(run).measure(Cell(seed, choice, Way.from_json(data)))
    assert record.error is None, record.error
    assert len(record.facts.get("similarities", ())) <= 5
    if way.entries == 0:
        assert record.facts["similarities"] == []


def test_an_empty_library_elects_the_importance_mask(run):
    seed, choice = run.new_choices(["new"])[0]
    ways = (Way("SMSP", iterations=1, entries=0), Way("L1", iterations=1))
    one, other = (Cells(run).measure(Cell(seed, choice, way)) for way in ways)
    assert one.facts["mask"] == other.facts["mask"]
    assert one.values["after"] == other.values["after"]


def test_a_twin_is_what_the_library_would_hold_of_the_same_task(run):
    """As many iterations as the library's masks have, or others; with every unit kept it has no say."""
    choice = run.library_choices[0]
    way = Way("twin", iterations=1, keep_ratio=0.3)
    ways = [replace(way, seeding_iterations=count) for count in (None, 2, 20)]
    own, same, other = (Cells(run).measure(Cell(0, choice, way)).facts["mask"] for way in ways)
    assert run.settings.seeding.iterations == 2
    assert own == same != other
    whole = Way("twin", iterations=1, keep_ratio=1.0)
    dense = Way("dense", iterations=1)
    twin, network = (Cells(run).measure(Cell(0, choice, way)) for way in (whole, dense))
    assert twin.values == network.values


def test_a_library_is_seeded_only_for_ways_that_ask_it(run, tmp_path):
    """Seeding takes as long as hundreds of cells: who asks how long to heal need not wait for it."""
    other = RunDirectory.begin(tmp_path / "other", run.settings)
    ways = (Way("L1"), Way("twin"), Way("SMSP", entries=0), Way("L1", healing="empty"))
    stages = []
    prepare(other, [Experiment("", "", ways, "way", ways[0])], 1, lambda stage, *_: stages.append(stage))
    assert set(stages) == {"healing the backbone (empty)"}
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


def test_healing_changes_the_weights_and_not_the_mask(run):
    seed, choice = run.new_choices(["new"])[0]
    ways = (Way("L1", iterations=0), Way("L1", iterations=0, healing="library"))
    one, other = (Cells(run).measure(Cell(seed, choice, way)) for way in ways)
    assert one.facts["mask"] == other.facts["mask"]
    changed = [
        n for n in run.weights if not torch.equal(run.weights[n], run.healed.weights("library")[n])
    ]
    assert any(name.endswith("conv1.weight") for name in changed)
    assert not any(name.startswith("fc.") for name in changed)


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


def test_a_mask_that_several_tasks_share_is_healed_once_and_tuned_by_each(run, monkeypatch):
    (one, first), (other, second) = run.new_choices(["new"])[:2]
    way = Way("L1", iterations=1, healing="mask", healing_iterations=2)
    alone = [Cells(run).measure(c).values for c in (Cell(one, first, way), Cell(other, second, way))]
    healings = []
    monkeypatch.setattr(
        "simulations.cells.heal_mask", lambda *a, **k: healings.append(a[2]) or heal_mask(*a, **k)
    )
    cells = Cells(run)
    together = [cells.measure(c).values for c in (Cell(one, first, way), Cell(other, second, way))]
    assert together == alone
    assert len(healings) == 1
    longer = replace(way, healing_iterations=3)
    assert cells.measure(Cell(one, first, longer)).error is None
    assert len(healings) == 2


def test_what_a_server_sends_is_measured_through_a_server(run):
    """Not healed, its library votes; healed, everybody gets the most important units, so weighted."""
    ways = [Way("served", keep_ratio=0.3, iterations=1, healing=kind) for kind in ("none", "served")]
    prepare(run, [Experiment("", "", tuple(ways), "way", ways[0])], workers=1, watch=quiet)
    seed, choice = run.new_choices(["new"])[0]
    voted, healed = (Cells(run).measure(Cell(seed, choice, way)) for way in ways)
    assert (voted.error, healed.error) == (None, None)
    assert (voted.facts["origin"], healed.facts["origin"]) == ("vote", "importance")
    alike = Way("L1", keep_ratio=0.3, iterations=1, healing="served")
    same = Cells(run).measure(Cell(seed, choice, alike))
    assert same.facts["mask"] == healed.facts["mask"] != voted.facts["mask"]
    assert same.values == healed.values
    with Library.open(run.path / "library.db") as library:
        assert store_of(library).backbone().iterations == run.settings.healing.iterations
        # What a server answered once it answers again: kept, a measurement would be of the first code.
        assert library.statistics().unanswered == 0


def test_fresh_tasks_are_no_other_experiments(run):
    fresh, others = run.new_choices(["fresh"]), run.new_choices(["new", "five", "shifted"])
    assert [seed for seed, _ in fresh] == [0, 1]
    assert not {choice.classes for _, choice in fresh} & {choice.classes for _, choice in others}


def test_a_record_says_by_which_code_it_was_measured(run):
    seed, choice = run.new_choices(["new"])[0]
    for mask in ("neighbours", "no such mask"):
        record = Cells(run).measure(Cell(seed, choice, Way(mask)))
        assert record.commit == commit()
        assert Record(**{**json.loads(record.to_line()), "way": record.way}) == record


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


def test_a_small_network_takes_part_where_a_run_has_one(run):
    of = {cell.way.mask for cell in cells_of(run, EXPERIMENTS["criteria"])}
    without = RunDirectory(run.path)
    without.settings = replace(run.settings, small_model="")
    assert of - {cell.way.mask for cell in cells_of(without, EXPERIMENTS["criteria"])} == {
        "small network"
    }
    seed, choice = run.new_choices(["new"])[0]
    ways = (Way("small network", iterations=1), Way("dense", iterations=1))
    one, other = (Cells(run).measure(Cell(seed, choice, way)) for way in ways)
    # Here it is the backbone itself, so that both are one network.
    assert one.values == other.values
    assert one.facts["parameters"] == other.facts["parameters"]


def test_devices_share_no_training_image_with_the_library(run):
    _, choice = run.new_choices(["new"])[0]
    ours = {image.numpy().tobytes() for image in run.library_task(choice).train.pixels}
    theirs = {image.numpy().tobytes() for image in run.new_task(choice).train.pixels}
    judged = {image.numpy().tobytes() for image in run.new_task(choice).evaluation.pixels}
    assert not ours & theirs
    assert not (ours | theirs) & judged


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


@pytest.fixture(scope="module")
def contest(run) -> Contest:
    task = run.new_task(run.new_choices(["five"])[0][1])
    counts = allot(run.structure, Budget(keep_ratio=0.3), 5)
    return Contest(
        run.backbone, run.weights, run.structure, task, counts, FineTuneSettings(), seed=1, evaluate_at=()
    )


class Placed(TorchFunctionMode):
    """Keeps the shapes of the tensors that are put somewhere, and where."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[tuple[tuple[int, ...], str]] = Counter()

    def __torch_function__(self, function, types, given=(), options=None):
        if function is torch.Tensor.to:
            self.asked[tuple(given[0].shape), str(given[1])] += 1
        return function(*given, **(options or {}))


@pytest.mark.parametrize("done", ["seeded", "grown", "healed for one mask"])
def test_what_a_run_tunes_and_heals_is_put_on_its_device_whole(run, done, tmp_path):
    """No other device than the CPU is sure to be there, but the CPU has another name."""
    placed = RunDirectory(run.path)
    if done == "seeded":
        RunDirectory.begin(tmp_path / "empty", run.settings).found()
        placed = RunDirectory(tmp_path / "empty")
    placed.settings = replace(run.settings, device="cpu:0")
    with Placed() as record:
        if done == "seeded":
            placed.seed(placed.library_choices[0])
        elif done == "grown":
            placed.grow("echoed", lambda done, total: None)
        else:
            way = Way("L1", iterations=0, keep_ratio=0.3, healing="mask", healing_iterations=1)
            seed, choice = run.new_choices(["new"])[0]
            assert Cells(placed).measure(Cell(seed, choice, way)).error is None
    assert Counter((tuple(v.shape), "cpu:0") for v in run.weights.values()) <= record.asked


def test_torch_pruning_follows_the_network_with_images_where_it_is(contest):
    with Placed() as record:
        MASKS["Torch-Pruning magnitude"](contest)
    assert record.asked[(2, *contest.backbone.input_size), "cpu"] == 1


@pytest.mark.parametrize("name", VOTES)
def test_every_vote_keeps_as_many_units_and_those_that_all_voters_agree_on(run, contest, name):
    """Three that bring one mask elect it, whoever asks and whatever else is weighed in ties."""
    mask = Mask.keep_top(run.structure, magnitude(run.weights, run.structure, 2), contest.counts)
    entries = [replace(entry, mask=mask) for entry in run.entries]
    voted = VOTES[name](contest, Voters(entries, np.array([0.9, 0.5, 0.1]), count=2))
    assert voted.kept.sum() == sum(contest.counts)
    if name not in ("SMSP and Taylor", "SMSP exploring"):
        assert voted == mask
    if name != "SMSP over all groups":
        assert voted.counts == contest.counts


def test_a_prior_decides_between_units_of_about_as_many_votes_and_not_against_all_votes(run, contest):
    """A unit that all vote for has 1 and at most half more; one that nobody votes for at most a half."""
    group = run.structure.groups[0]
    rank = magnitude(run.weights, run.structure)[group.name].argsort().argsort()
    rows = {
        g.name: np.arange(g.units) < n for g, n in zip(run.structure.groups, contest.counts, strict=True)
    }
    entries = [replace(entry, mask=Mask.of(run.structure, rows)) for entry in run.entries]
    other = {**rows, group.name: np.roll(rows[group.name], 1)}
    entries[1] = replace(entries[1], mask=Mask.of(run.structure, other))
    voters = Voters(entries[:2], np.array([0.5, 0.5]), count=2)
    kept = with_prior(contest, voters)[group.name]
    size = contest.counts[0]
    assert kept[1:size].all()  # both vote for those
    # Unit 0 and unit `size` have one vote each: the more important one is kept.
    assert kept[0] == (rank[0] > rank[size])
    assert kept[size] != kept[0]
