"""Founding a library and seeding it with the operator's tasks, on real images of characters."""

from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from glyph_tasks import glyph_backbone, glyph_images, glyph_task
from random_weights import random_weights

from common.backbone import weights_digest
from common.budget import Budget
from common.errors import BudgetError, InputError, MismatchError, UnsupportedModel
from common.fitting import all_features
from common.importance import magnitude
from common.mask import Mask
from common.proof import Proof
from common.tuning_settings import FineTuneSettings, PruningSettings
from server import founding
from server.budget import allot
from server.coordinator import Coordinator
from server.founding import found_library, seed_library
from server.library import Entry, Library
from server.proved_table import proved_table

SETTINGS = FineTuneSettings(iterations=6, batch_size=8, fit_images=64)
PRUNING = PruningSettings(rounds=2)
KEEP_RATIO = 0.4


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.fixture(scope="module")
def backbone():
    return glyph_backbone()


@pytest.fixture(scope="module")
def weights(backbone):
    return random_weights(backbone)


@pytest.fixture(scope="module")
def images(backbone):
    return glyph_images("ΓΔΛΞΠΣ", 20, backbone, seed=50)


@pytest.fixture(scope="module")
def tasks(backbone):
    """Three tasks of the operator's, by name, with how to load each."""

    def loader(characters: str):
        return lambda: glyph_task(characters, backbone, each=12)

    return [(characters, loader(characters)) for characters in ("ABC", "DEFG", "HX")]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "library.db"


@pytest.fixture
def library(path, backbone, weights, images):
    with found_library(path, backbone, weights, images) as library:
        yield library


def seed(library: Library, weights, tasks, **options) -> list[Entry]:
    return seed_library(
        library, weights, tasks, keep_ratio=KEEP_RATIO, settings=SETTINGS, pruning=PRUNING, **options
    )


def content(entries: list[Entry]) -> list[Entry]:
    """Entries without the time of recording."""
    return [replace(entry, recorded=datetime.min) for entry in entries]


@pytest.fixture(scope="module")
def seeded(tmp_path_factory, backbone, weights, images, tasks):
    """The entries of an uninterrupted run, and the digest of its library's probe."""
    path: Path = tmp_path_factory.mktemp("seeded") / "library.db"
    with found_library(path, backbone, weights, images) as library:
        return seed(library, weights, tasks), library.offer.probe.digest


# Founding


def test_a_founded_library_is_empty_and_stands_for_its_backbone(library, backbone, weights):
    assert len(library) == 0
    assert library.offer.backbone == backbone
    assert library.weights_digest == weights_digest(weights)
    assert {group.kind for group in library.offer.structure.groups} == {"internal"}


def test_the_probe_keeps_a_quarter_of_the_units_and_those_of_the_largest_weights(library, weights):
    structure, mask = library.offer.structure, library.offer.probe.subnetwork.mask
    assert int(mask.kept.sum()) == structure.units // 4
    assert mask == Mask.keep_top(structure, magnitude(weights, structure), mask.counts)


def test_the_probes_center_is_the_mean_feature_of_the_operators_images(library, images):
    """In the network as it is stored: its batch norm is set to these images as well."""
    probe = library.offer.probe
    mean = all_features(probe.network, images).mean(0).numpy()
    np.testing.assert_allclose(probe.center, mean, rtol=1e-4, atol=1e-5)
    norms = [tensor for name, tensor in probe.subnetwork.weights.items() if "running_mean" in name]
    assert norms
    assert all(norm.abs().sum() > 0 for norm in norms)


def test_the_probe_is_in_half_precision_and_half_as_large(library):
    """Its tensors of two dimensions or more: all devices compute with the very same numbers."""
    probe = library.offer.probe
    dtypes = {(t.ndim >= 2, t.dtype) for t in probe.subnetwork.weights.values() if t.is_floating_point()}
    assert dtypes == {(True, torch.float16), (False, torch.float32)}
    numbers = sum(tensor.numel() for tensor in probe.subnetwork.weights.values())
    assert len(probe.to_bytes()) < 3.2 * numbers
    assert {p.dtype for p in probe.network.parameters()} == {torch.float32}


def test_the_probe_is_the_same_after_opening_the_library_again(path, library, tasks):
    """So signatures from before are comparable with those from after."""
    task = tasks[0][1]()
    before = library.offer.probe.describe(task.train, len(task.classes))
    library.close()
    with Library.open(path) as reopened:
        probe = reopened.offer.probe
        assert probe.digest == library.offer.probe.digest
        probe.check(before)
        assert probe.describe(task.train, len(task.classes)) == before


def test_the_same_seed_founds_the_same_probe_and_another_seed_another(
    tmp_path, library, backbone, weights, images
):
    """Batch norm averages batches that the seed draws."""
    many = glyph_images("ΓΔΛΞΠΣ", 40, backbone, seed=50)

    def probe_digest(name: str, seed: int) -> str:
        with found_library(tmp_path / name, backbone, weights, many, seed=seed) as founded:
            return founded.offer.probe.digest

    assert probe_digest("one", 1) == probe_digest("same", 1) != probe_digest("other", 2)


def test_no_library_is_founded_over_another(path, library, backbone, weights, images, monkeypatch):
    """Which is told before anything is proved or fitted: for a large model that takes minutes."""
    monkeypatch.setattr(founding, "proved_table", lambda *_, **__: pytest.fail("it was proved"))
    with pytest.raises(InputError, match="overwrites nothing"):
        found_library(path, backbone, weights, images)


def test_a_probe_smaller_than_any_is_refused_and_leaves_no_file(path, backbone, weights, images):
    with pytest.raises(BudgetError, match="ask for at least"):
        found_library(path, backbone, weights, images, probe_keep_ratio=0.001)
    assert not path.exists()


# Seeding


def test_every_seed_has_the_asked_counts_and_is_described_by_the_probe(seeded, backbone, tasks):
    entries, probe_digest = seeded
    assert [entry.position for entry in entries] == [1, 2, 3]
    for entry, (_, load) in zip(entries, tasks, strict=True):
        classes = len(load().classes)
        structure = entry.mask.structure
        assert entry.mask.counts == allot(structure, Budget(keep_ratio=KEEP_RATIO), classes)
        assert entry.signature.classes == classes
        assert entry.signature.probe == probe_digest
        assert (entry.method, entry.iterations) == ("iterative", SETTINGS.iterations)
        assert 0 <= entry.accuracy_before <= 1
        assert 0 <= entry.accuracy_after <= 1


def test_different_tasks_keep_different_units(seeded):
    assert len({entry.mask for entry in seeded[0]}) == 3


def test_seeding_that_was_killed_goes_on_and_ends_as_if_it_had_not_been(
    path, library, weights, tasks, seeded
):
    """Killed amid the second task: the first is not done again, and all are the same in the end."""

    def kill_amid_second(name: str, done: int, of: int) -> None:
        if name == tasks[1][0] and done == 2:
            raise Killed

    with pytest.raises(Killed):
        seed(library, weights, tasks, progress=kill_amid_second)
    library.close()
    worked_on = []
    with Library.open(path) as reopened:
        assert len(reopened) == 1
        entries = seed(reopened, weights, tasks, progress=lambda name, *_: worked_on.append(name))
        assert set(worked_on) == {tasks[1][0], tasks[2][0]}
        assert content(entries) == content(seeded[0])
        assert content(reopened.entries()) == content(seeded[0])


def test_a_tasks_mask_depends_on_no_other_task(library, weights, tasks, seeded):
    """Its randomness comes from the seed and its name, not from its place in the row."""
    entries = seed(library, weights, tasks[::-1])
    by_name = {entry.entry: entry.mask for entry in entries}
    assert by_name == {entry.entry: entry.mask for entry in seeded[0]}


def test_another_seed_may_prune_otherwise_but_never_changes_what_is_stored(library, weights, tasks):
    first = seed(library, weights, tasks[:1], seed=1)
    assert seed(library, weights, tasks[:1], seed=2) == first


def test_progress_tells_the_task_and_every_iteration_of_it(library, weights, tasks):
    told: list[tuple[str, int, int]] = []
    seed(library, weights, tasks[2:], progress=lambda *step: told.append(step))
    name, of = tasks[2][0], SETTINGS.iterations
    assert told == [(name, done, of) for done in range(of + 1)]


def test_seeds_vote_as_soon_as_the_library_is_served(library, weights, tasks):
    entries = seed(library, weights, tasks)
    coordinator = Coordinator(library, weights)
    assert len(coordinator) == 3
    assert coordinator.masks == {entry.entry: entry.mask for entry in entries}


def test_founding_and_seeding_leave_the_backbones_weights_as_they_are(library, weights, tasks):
    seed(library, weights, tasks[:1])
    assert weights_digest(weights) == library.weights_digest


def test_another_networks_masks_are_never_seeded(library, weights, tasks):
    """One number of one tensor differs, as all do where the checkpoint was forgotten."""
    name = next(iter(weights))
    other = {**weights, name: weights[name] + 1}
    with pytest.raises(MismatchError, match=r"founded on.*give the checkpoint it was founded on"):
        seed(library, other, tasks[:1], progress=lambda *_: pytest.fail("it was pruned"))
    assert len(library) == 0


def test_a_tasks_name_that_cannot_be_kept_is_told_before_anything_is_pruned(library, weights, tasks):
    """`operator:` and 192 characters are one too many; the task before would take its minutes."""
    load = tasks[0][1]
    with pytest.raises(InputError, match=r"201 characters.*at most 200 characters: take another"):
        seed(library, weights, [("first", load), ("x" * 192, load)])
    assert len(library) == 0


def test_what_cannot_be_proved_is_never_cut(path, backbone, weights, images, monkeypatch):
    """A table that says of one group that it fails: it is not in the library's structure."""
    table = proved_table(backbone)
    first, *others = table.proof.verdicts
    assert first.group in table.structure(("internal",)).starts
    spoilt = replace(first, outcome="fails", reason="the cut network raises an error")
    failing = replace(table, proof=Proof((spoilt, *others)))
    monkeypatch.setattr(founding, "proved_table", lambda *_, **__: failing)
    with found_library(path, backbone, weights, images) as library:
        structure = library.offer.structure
    assert first.group not in structure.starts
    assert structure.frozen[first.group] == "fails: the cut network raises an error"
    assert len(structure.groups) == len(table.structure(("internal",)).groups) - 1


def test_nothing_is_proved_twice_and_the_proof_is_told_as_it_goes(
    tmp_path, backbone, weights, images, monkeypatch
):
    monkeypatch.setenv("MASKVOTE_CACHE", str(tmp_path / "cache"))
    structures, told = [], []
    for name in ("first", "second"):
        steps: list[tuple[int, int]] = []
        with found_library(
            tmp_path / name, backbone, weights, images, watch=lambda *step, to=steps: to.append(step)
        ) as library:
            structures.append(library.offer.structure)
        told.append(steps)
    assert structures[0] == structures[1]
    assert told[0][-1][0] == told[0][-1][1] > 0
    assert told[1] == []


def test_a_backbone_of_which_nothing_is_proved_founds_no_library(
    path, backbone, weights, images, monkeypatch
):
    late = proved_table(backbone, seconds=0, cache=path.parent / "cache")
    monkeypatch.setattr(founding, "proved_table", lambda *_, **__: late)
    with pytest.raises(UnsupportedModel, match=r"nothing of .* can be cut: .*unchecked"):
        found_library(path, backbone, weights, images)
    assert not path.exists()
