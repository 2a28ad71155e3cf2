"""Cells: every way is measured, and what it comes to is what it says, on a small run of glyphs."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from glyph_run import quiet
from torch.overrides import TorchFunctionMode

from common.budget import Budget
from common.importance import magnitude
from common.mask import Mask
from common.tuning_settings import FineTuneSettings
from server.budget import allot
from server.healing.heal import heal_mask
from server.healing.heal_library import store_of
from server.library import Library
from simulations.baselines import MASKS
from simulations.cells import WAYS, Cells
from simulations.contest import Contest
from simulations.experiments import EXPERIMENTS
from simulations.experiments.experiment import Experiment
from simulations.provenance import commit
from simulations.records import Cell, Record
from simulations.run_directory import RunDirectory
from simulations.running import cells_of, prepare
from simulations.similarities import SIMILARITIES
from simulations.voters import VOTES, Voters, with_prior
from simulations.way import Way


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


def test_a_record_says_by_which_code_it_was_measured(run):
    seed, choice = run.new_choices(["new"])[0]
    for mask in ("neighbours", "no such mask"):
        record = Cells(run).measure(Cell(seed, choice, Way(mask)))
        assert record.commit == commit()
        assert Record(**{**json.loads(record.to_line()), "way": record.way}) == record


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
