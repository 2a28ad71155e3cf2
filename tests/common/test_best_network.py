"""Held-out training images choose which network is kept, and how sure it is."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_adaptation import SETTINGS, adapt, weights_of
from toys import images_of, task_of

from common.adaptation import adapt_network
from common.best_network import BestNetwork, held_out
from common.calibration import calibration_of
from common.fine_tune import FineTuneSettings
from common.fitting import accuracy
from common.images import PixelImages
from common.pruning import PruningSettings
from common.subnetwork import SubNetwork
from common.task_data import Task


class Seen:
    """Labelled images that note which of them a network is trained on."""

    def __init__(self, images: PixelImages) -> None:
        self.labels = images.labels
        self.trained_on: set[int] = set()
        self.network: torch.nn.Module | None = None
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def batch(self, indices: torch.Tensor) -> torch.Tensor:
        if self.network is not None and self.network.training:
            self.trained_on |= {*indices.tolist()}
        return self._images.batch(indices)


def test_images_that_compare_networks_are_not_tuned_on(ours, half, task):
    images = Seen(task.train)
    network = images.network = SubNetwork.of(ours.backbone, ours.weights, half).network(3)
    adapted = adapt_network(
        network,
        ours.backbone,
        half,
        Task(task.classes, images, task.evaluation),
        replace(SETTINGS, iterations=20),
        torch.Generator().manual_seed(0),
    )
    held = torch.nonzero(held_out(task.train.labels, torch.Generator().manual_seed(0))).flatten()
    assert images.trained_on == {*range(len(images))} - {*held.tolist()}
    assert adapted.held_out == len(held) == 6


@pytest.fixture
def offered(monkeypatch) -> dict[int, tuple[float, tuple[int, ...]]]:
    """The loss and the size of every network that was compared, by iterations done."""
    noted: dict[int, tuple[float, tuple[int, ...]]] = {}
    offer = BestNetwork.offer

    def note(self, network, mask, scores, iterations, loss):
        noted[iterations] = loss, mask.counts
        offer(self, network, mask, scores, iterations, loss)

    monkeypatch.setattr(BestNetwork, "offer", note)
    return noted


def test_the_network_of_the_lowest_loss_on_held_out_images_is_kept(ours, half, offered):
    """And its accuracy is told as the one in the end. Tuning at this rate only makes things worse."""
    images = [images_of(ours.backbone, per_class=40, seed=seed, noise=60) for seed in (1, 2)]
    task = Task(tuple("abc"), *images)
    wild = FineTuneSettings(iterations=60, learning_rate=300.0, batch_size=24, final_rate=1.0)
    adapted = adapt(ours, half, task, settings=wild, evaluate_at=(25, 50))
    assert sorted(offered) == [0, 25, 50, 60]
    assert offered[adapted.kept] == min(offered.values())
    assert adapted.kept < 60
    assert adapted.after == adapted.accuracies[adapted.kept]
    assert accuracy(adapted.network, task.evaluation) == adapted.after


def test_units_of_a_network_that_was_kept_on_the_way_rank_as_they_did_then(ours, half, monkeypatch):
    """The mask that goes back is of the network that was kept."""
    first_is_best = {25: 1.0, 50: 2.0}
    offer = BestNetwork.offer
    monkeypatch.setattr(
        BestNetwork,
        "offer",
        lambda self, network, mask, scores, done, loss: offer(
            self, network, mask, scores, done, first_is_best.get(done, 9.0)
        ),
    )
    constant = replace(SETTINGS, iterations=50, final_rate=1.0)
    early = adapt(ours, half, task_of(ours.backbone), settings=constant)
    assert early.kept == 25
    same_rate = adapt(ours, half, task_of(ours.backbone), settings=replace(constant, iterations=25))
    for name in half:
        assert np.array_equal(early.pruned.scores[name], same_rate.pruned.scores[name])
    assert torch.equal(weights_of(early), weights_of(same_rate))


@pytest.mark.parametrize("iterations", [0, 20])
def test_probabilities_say_how_often_the_network_is_right(ours, half, iterations):
    """Before tuning and after it, on images that had no part in either."""
    images = [images_of(ours.backbone, per_class=60, classes=6, seed=seed, noise=60) for seed in (1, 2)]
    task = Task(tuple("abcdef"), *images)
    adapted = adapt(
        ours, half, task, settings=replace(SETTINGS, iterations=iterations, learning_rate=0.05)
    )
    with torch.no_grad():
        logits = adapted.network(task.evaluation.batch(torch.arange(len(task.evaluation))))
    found = calibration_of(logits.numpy(), task.evaluation.labels.numpy())
    assert 0.3 < adapted.after < 0.97
    assert found.error < 0.1


@pytest.mark.parametrize("iterations", [1, 12])
def test_a_network_that_is_cut_in_its_last_iteration_is_compared_too(ours, half, offered, iterations):
    """Though no iteration is left in which it could settle."""
    target = tuple(max(1, count // 2) for count in half.counts)
    pruning = PruningSettings(rounds=2, settle=0.0)
    settings = replace(SETTINGS, iterations=iterations)
    adapted = adapt(ours, half, task_of(ours.backbone), settings=settings, target=target, pruning=pruning)
    assert sorted(offered) == [0, iterations]
    assert {counts for _, counts in offered.values()} == {target} == {adapted.pruned.mask.counts}
    assert offered[adapted.kept] == min(offered.values())


def test_with_pruning_the_first_network_is_what_gradients_rank_and_cut_before_any_iteration(
    ours, half, offered
):
    """It is what is left where tuning diverges, and else it is compared with the tuned ones."""
    images = [images_of(ours.backbone, per_class=40, seed=seed, noise=60) for seed in (1, 2)]
    task = Task(tuple("abc"), *images)
    target = tuple(max(1, count // 2) for count in half.counts)
    options = {"target": target, "pruning": PruningSettings(rounds=1)}
    calm = FineTuneSettings(iterations=3, learning_rate=0.01, batch_size=24)
    tuned = adapt(ours, half, task, settings=calm, **options)
    assert sorted(offered) == [0, 3]
    assert offered[tuned.kept] == min(offered.values())
    wild = replace(calm, learning_rate=1e12, max_seconds=600)
    ruined = adapt(ours, half, task, settings=wild, **options)
    assert ruined.kept == 0
    untuned = adapt(ours, half, task, settings=replace(wild, iterations=0), **options)
    assert ruined.pruned.mask == untuned.pruned.mask
    assert ruined.pruned.mask.counts == target
    assert ruined.after == untuned.after == accuracy(ruined.network, task.evaluation)


def test_where_accuracy_is_measured_on_the_way_does_not_change_which_network_is_kept(ours, half):
    images = [images_of(ours.backbone, per_class=40, seed=seed, noise=60) for seed in (1, 2)]
    task = Task(tuple("abc"), *images)
    settings = FineTuneSettings(iterations=30, learning_rate=10.0, batch_size=24, final_rate=1.0)
    without = adapt(ours, half, task, settings=settings)
    looked = adapt(ours, half, task, settings=settings, evaluate_at=(3, 7, 11, 12, 20, 24, 29))
    assert looked.kept == without.kept
    assert torch.equal(weights_of(looked), weights_of(without))


def test_too_few_held_out_images_choose_nothing(ours, half):
    """Of classes of two images and one of three, a single image is held out: the last network stays."""
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 2])
    pixels = images_of(ours.backbone, per_class=3).pixels[:7]
    task = task_of(ours.backbone)
    few = Task(task.classes, PixelImages(pixels, labels, ours.backbone), task.evaluation)
    wild = FineTuneSettings(iterations=3, learning_rate=1e3, batch_size=6, final_rate=1.0)
    adapted = adapt(ours, half, few, settings=wild)
    assert adapted.held_out == 1
    assert adapted.kept == 3
