"""Held-out training images choose which network is kept, and how sure it is."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
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


def test_the_network_of_the_lowest_loss_on_held_out_images_is_kept(ours, half, monkeypatch):
    """And its accuracy is told as the one in the end. Tuning at this rate only makes things worse."""
    losses: dict[int, float] = {}
    offer = BestNetwork.offer

    def noted(self, network, mask, scores, iterations, loss):
        losses[iterations] = loss
        offer(self, network, mask, scores, iterations, loss)

    monkeypatch.setattr(BestNetwork, "offer", noted)
    images = [images_of(ours.backbone, per_class=40, seed=seed, noise=60) for seed in (1, 2)]
    task = Task(tuple("abc"), *images)
    wild = FineTuneSettings(iterations=60, learning_rate=300.0, batch_size=24, final_rate=1.0)
    adapted = adapt(ours, half, task, settings=wild, evaluate_at=(25, 50))
    assert sorted(losses) == [0, 25, 50, 60]
    assert losses[adapted.kept] == min(losses.values())
    assert adapted.kept < 60
    assert adapted.after == adapted.accuracies[adapted.kept]
    assert accuracy(adapted.network, task.evaluation) == adapted.after


def test_units_of_a_network_that_was_kept_on_the_way_rank_as_they_did_then(ours, half, monkeypatch):
    """The mask that goes back is of the network that was kept."""
    stopped = adapt(ours, half, task_of(ours.backbone), settings=replace(SETTINGS, iterations=25))
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
    assert stopped.kept in (0, 25)


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
def test_a_network_that_is_cut_in_its_last_iteration_is_compared_and_kept(ours, half, iterations):
    """With no iteration left to settle in, it is the only one of its size."""
    target = tuple(max(1, count // 2) for count in half.counts)
    pruning = PruningSettings(rounds=2, settle=0.0)
    settings = replace(SETTINGS, iterations=iterations)
    adapted = adapt(ours, half, task_of(ours.backbone), settings=settings, target=target, pruning=pruning)
    assert adapted.kept == adapted.iterations == iterations
    assert adapted.pruned.mask.counts == target


@given(st.lists(st.integers(0, 70), min_size=1, max_size=6), st.integers(0, 2**31))
def test_a_tenth_of_each_class_compares_networks_and_more_of_a_small_one(counts, seed):
    """Of 3 to 9 images one, of 10 two, of 15 three, of 20 to 49 four."""
    labels = torch.cat([torch.full((count,), k) for k, count in enumerate(counts)])
    held = held_out(labels, torch.Generator().manual_seed(seed))
    for k, count in enumerate(counts):
        expected = max(count // 10, min(count // 5, 4), count >= 3)
        assert int(held[labels == k].sum()) == expected
    assert held.shape == labels.shape


def test_which_images_compare_networks_is_random_and_the_same_for_the_same_seed():
    labels = torch.arange(300) % 3
    first, again, other = (held_out(labels, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
