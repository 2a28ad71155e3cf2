import numpy as np
import pytest
import torch
from toy_adaptation import adapt, weights_of
from toys import example, images_of, random_mask, task_of

from common.adaptation import Adapted
from common.fine_tune import FineTuneSettings
from common.pruning import PruningSettings
from common.task_data import Task


@pytest.fixture(scope="module")
def adapted(ours, half, task) -> Adapted:
    return adapt(ours, half, task)


def test_a_few_iterations_learn_the_task(adapted):
    """The classes are three pictures under noise."""
    assert adapted.before > 0.6
    assert adapted.after > 0.9
    assert sorted(adapted.accuracies) == [0, 8]
    assert not adapted.network.training


def test_without_pruning_the_mask_stays_and_its_units_are_ranked(adapted, half):
    assert adapted.pruned.mask == half
    for name, kept in half.items():
        scores = adapted.pruned.scores[name]
        assert (scores[kept] >= 0).all()
        assert np.isneginf(scores[~kept]).all()
    assert any(len(set(adapted.pruned.scores[name][half[name]])) > 1 for name in half)


def test_with_pruning_the_target_is_reached_within_the_mask(ours, half, task):
    target = tuple(max(1, count // 2) for count in half.counts)
    adapted = adapt(ours, half, task, target=target, pruning=PruningSettings(rounds=2))
    assert adapted.pruned.mask.counts == target
    assert adapted.pruned.mask.within(half)
    parameters = sum(p.numel() for p in adapted.network.parameters())
    assert parameters == ours.structure.parameters(target, 3)
    assert adapted.after > 0.6


def test_the_same_seed_gives_the_same_network_and_ranking(ours, half, task, adapted):
    again, other = adapt(ours, half, task), adapt(ours, half, task, seed=1)
    assert torch.equal(weights_of(again), weights_of(adapted))
    assert again.accuracies == adapted.accuracies
    for name in half:
        assert np.array_equal(again.pruned.scores[name], adapted.pruned.scores[name])
    assert not torch.equal(weights_of(other), weights_of(adapted))


@pytest.mark.parametrize("pruning", [None, PruningSettings(rounds=2)])
def test_evaluating_on_the_way_does_not_change_what_comes_out(ours, half, task, pruning):
    """Nor the random draws: with and without it the network is the same to the last bit."""
    options = {"pruning": pruning, "target": tuple(max(1, count // 2) for count in half.counts)}
    without = adapt(ours, half, task, **options)
    looked = adapt(ours, half, task, evaluate_at=(1, 5), **options)
    assert sorted(looked.accuracies) == [0, 1, 5, 8]
    assert torch.equal(weights_of(looked), weights_of(without))
    assert looked.pruned.mask == without.pruned.mask


def test_evaluation_images_have_no_part_in_the_result(ours, half, task, adapted):
    """With others in their place the network is the same."""
    other = Task(task.classes, task.train, images_of(ours.backbone, per_class=1, seed=3))
    assert torch.equal(weights_of(adapt(ours, half, other)), weights_of(adapted))


def test_progress_is_told_at_the_start_and_after_every_iteration(ours, half, task):
    told = []
    adapt(ours, half, task, progress=lambda done, total: told.append((done, total)))
    assert told == [(done, 8) for done in range(9)]


def test_the_time_that_every_step_took_is_told_and_counted_once(adapted):
    assert set(adapted.seconds) == {"fit", "tune", "evaluate"}
    assert all(seconds > 0 for seconds in adapted.seconds.values())


def test_without_iterations_the_fitted_network_is_the_result(ours, half, task, adapted):
    """About as accurate as before the first iteration of a longer run, and that is also the last.

    It is fitted once more, and which of the images are held out for that is another lot.
    """
    none = adapt(ours, half, task, settings=FineTuneSettings(iterations=0))
    assert list(none.accuracies) == [0]
    assert none.before == pytest.approx(adapted.before, abs=2 / len(task.evaluation))
    assert none.before == none.after
    assert none.pruned.mask == half
    assert all((none.pruned.scores[name][~half[name]] == -np.inf).all() for name in half)


def test_without_iterations_units_are_ranked_all_the_same(ours, half, task):
    """Else the mask a device contributes is by index order."""
    none = adapt(ours, half, task, settings=FineTuneSettings(iterations=0))
    assert all((none.pruned.scores[name][half[name]] > 0).any() for name in half)


def test_without_iterations_the_target_is_reached_all_the_same(ours, half, task):
    target = tuple(max(1, count // 2) for count in half.counts)
    none = adapt(
        ours,
        half,
        task,
        settings=FineTuneSettings(iterations=0),
        target=target,
        pruning=PruningSettings(),
    )
    assert none.pruned.mask.counts == target


@pytest.mark.parametrize("iterations", [1, 2])
def test_one_iteration_is_enough_to_reach_the_target(ours, half, task, iterations):
    target = tuple(max(1, count // 2) for count in half.counts)
    adapted = adapt(
        ours,
        half,
        task,
        settings=FineTuneSettings(iterations=iterations, batch_size=12),
        target=target,
        pruning=PruningSettings(rounds=3),
    )
    assert adapted.pruned.mask.counts == target


@pytest.mark.parametrize("images", [1, 2])
def test_a_task_of_one_or_two_images_a_class_is_adapted_to(ours, half, images):
    """Nothing can be held out, batch norm sees little; it still runs and gives finite weights."""
    adapted = adapt(ours, half, task_of(ours.backbone, per_class=images))
    assert torch.isfinite(weights_of(adapted)).all()


def test_a_task_of_two_images_in_all_is_adapted_to(ours, half):
    adapted = adapt(ours, half, task_of(ours.backbone, per_class=1, classes=2))
    assert torch.isfinite(weights_of(adapted)).all()


def test_a_transformer_is_adapted_by_the_same_steps():
    vit = example("test_vit", 32)
    mask = random_mask(vit.structure, 0.5)
    target = tuple(max(1, count // 2) for count in mask.counts)
    adapted = adapt(vit, mask, task_of(vit.backbone), target=target, pruning=PruningSettings(rounds=1))
    assert adapted.pruned.mask.counts == target
    assert adapted.after > 1 / 3
