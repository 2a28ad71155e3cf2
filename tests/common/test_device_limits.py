"""An adaptation within seconds: it ends in time, keeps the better network, and says what it left out."""

import re
import time
from dataclasses import replace

import pytest
import torch
from toys import Example, example, images_of, random_mask, task_of

from common.adaptation import Adapted, adapt_network
from common.deadline import Deadline
from common.errors import Diverged
from common.fine_tune import FineTuneSettings, FineTuning, only_tuned
from common.images import PixelImages
from common.importance import rank
from common.mask import Mask
from common.pruning import PruningSettings
from common.subnetwork import SubNetwork
from common.task_data import Task

SETTINGS = FineTuneSettings(iterations=100_000, batch_size=12, learning_rate=0.01)


@pytest.fixture(scope="module")
def ours() -> Example:
    return example("test_resnet", 32)


@pytest.fixture(scope="module")
def task(ours) -> Task:
    return task_of(ours.backbone)


def adapt(ours: Example, task: Task, settings: FineTuneSettings, **options) -> Adapted:
    mask = random_mask(ours.structure, 0.5)
    return adapt_network(
        SubNetwork.of(ours.backbone, ours.weights, mask).network(len(task.classes)),
        ours.backbone,
        mask,
        task,
        settings,
        torch.Generator().manual_seed(0),
        **options,
    )


def weights_of(network) -> torch.Tensor:
    return torch.cat([t.detach().flatten().double() for t in network.state_dict().values()])


@pytest.mark.parametrize("day", [None, 0.0])
def test_it_ends_in_time_and_says_how_far_it_came(ours, task, monkeypatch, day):
    """Whatever day it is: 1970 lets it do as much. Seconds are this process's own, whatever else runs."""
    for clock in ("monotonic", "perf_counter"):
        monkeypatch.setattr(time, clock, time.process_time)
    if day is not None:
        monkeypatch.setattr(time, "time", lambda: day)
    adapted = adapt(ours, task, replace(SETTINGS, max_seconds=3.0))
    assert sum(adapted.seconds.values()) < 3.0
    assert 0 < adapted.iterations < SETTINGS.iterations
    assert sorted(adapted.accuracies) == [0, adapted.iterations]
    assert f"{adapted.iterations} of 100000 iterations were done in the 3 seconds" in adapted.remarks[0]
    assert adapted.after > 0.9


def test_pruning_reaches_its_target_in_time_too(ours, task, monkeypatch):
    for clock in ("monotonic", "perf_counter"):
        monkeypatch.setattr(time, clock, time.process_time)
    mask = random_mask(ours.structure, 0.5)
    target = tuple(max(1, count // 2) for count in mask.counts)
    adapted = adapt(
        ours, task, replace(SETTINGS, max_seconds=4.0), target=target, pruning=PruningSettings(rounds=2)
    )
    assert adapted.pruned.mask.counts == target
    assert 0 < adapted.iterations < SETTINGS.iterations


@pytest.mark.parametrize("target", [None, 0.5])
def test_a_limit_too_short_fits_the_classifier_and_says_so(ours, task, target):
    mask = random_mask(ours.structure, 0.5)
    options = {}
    if target is not None:
        options = {"target": tuple(max(1, n // 2) for n in mask.counts), "pruning": PruningSettings()}
    adapted = adapt(ours, task, replace(SETTINGS, max_seconds=1e-3), **options)
    assert adapted.iterations == 0
    assert adapted.before > 0.6
    assert re.search(r"0\.001 seconds are too short to tune in.* allow at least \d+", adapted.remarks[0])
    assert adapted.pruned.mask.counts == options.get("target", mask.counts)
    assert any((scores > 0).any() for scores in adapted.pruned.scores.values())


def test_time_enough_changes_nothing_but_the_schedules_rounding(ours, task):
    few = replace(SETTINGS, iterations=6)
    adapted, free = adapt(ours, task, replace(few, max_seconds=600)), adapt(ours, task, few)
    assert adapted.iterations == 6
    assert adapted.remarks == ()
    assert torch.allclose(weights_of(adapted.network), weights_of(free.network), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("learning_rate", "diverges", "max_seconds"),
    [(1e4, False, None), (1e4, False, 600), (1e12, True, 600)],
)
def test_a_network_that_tuning_ruins_is_given_back_untuned_and_ranked_so(
    ours, learning_rate, diverges, max_seconds
):
    """Learning rates that no network survives."""
    images = [images_of(ours.backbone, per_class=40, seed=seed, noise=60) for seed in (1, 2)]
    task = Task(tuple("abc"), *images)
    wild = replace(
        SETTINGS, iterations=2, learning_rate=learning_rate, max_seconds=max_seconds, batch_size=1000
    )
    kept = adapt(ours, task, wild)
    assert kept.kept == 0
    if diverges:
        (remark,) = kept.remarks
        assert remark.startswith("tuning diverged: ")
        assert " of 2, at a learning rate of 1e+12; give a smaller one" in remark
        assert remark.endswith("the best network before that was kept")
    else:
        assert kept.iterations == 2
        assert kept.remarks == ()
    assert kept.after == kept.before > 0.5
    assert torch.isfinite(weights_of(kept.network)).all()
    # Every batch is all images, so that their order has no effect on the ranks.
    expected = rank(kept.network, kept.pruned.mask, task.train, 1000, torch.Generator(), 1)
    for name, scores in kept.pruned.scores.items():
        assert scores == pytest.approx(expected[name], rel=1e-3)


def test_a_network_whose_features_overflow_is_not_kept(ours):
    """Its loss would not be a number, which is neither better nor worse than any other."""
    task = task_of(ours.backbone, per_class=40)
    settings = replace(SETTINGS, iterations=2, learning_rate=1e8, max_seconds=600, batch_size=1000)
    adapted = adapt(ours, task, settings)
    assert adapted.kept == 0
    assert adapted.after == adapted.before > 0.6


def test_a_network_that_diverges_is_pruned_all_the_same_by_what_it_was(ours, task):
    mask = random_mask(ours.structure, 0.5)
    target = tuple(max(1, count // 2) for count in mask.counts)
    wild = replace(SETTINGS, iterations=5, learning_rate=1e12, max_seconds=600)
    adapted = adapt(ours, task, wild, target=target, pruning=PruningSettings(rounds=2))
    (remark,) = adapted.remarks
    assert "tuning diverged" in remark
    assert adapted.kept == 0
    assert adapted.pruned.mask.counts == target
    assert adapted.after > 0.6
    Mask.keep_top(ours.structure, adapted.pruned.scores, target)


def test_with_all_the_time_there_is_a_network_that_diverges_is_an_error(ours, task):
    """So that another learning rate can be tried."""
    with pytest.raises(Diverged, match=r"of 5, at a learning rate of 1e\+12; give a smaller"):
        adapt(ours, task, replace(SETTINGS, iterations=5, learning_rate=1e12))


def test_which_one_is_kept_is_not_for_evaluation_images_to_decide(ours, task):
    """With labels that are all wrong, the same network comes out."""
    wrong = PixelImages(task.evaluation.pixels, (task.evaluation.labels + 1) % 3, ours.backbone)
    few = replace(SETTINGS, iterations=5, max_seconds=600)
    networks = [adapt(ours, t, few).network for t in (task, Task(task.classes, task.train, wrong))]
    assert torch.allclose(*map(weights_of, networks), rtol=1e-2, atol=1e-2)


def test_the_learning_rate_falls_with_the_time_where_that_is_further_on(ours, task, monkeypatch):
    """Steps of a second, of 8 seconds: the cosine is done when time is, not after 100 iterations."""
    clock, rates = [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    step = torch.optim.SGD.step

    def counted(self, *arguments):
        rates.append(self.param_groups[0]["lr"])
        clock[0] += 1
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.SGD, "step", counted)
    network = SubNetwork.of(ours.backbone, ours.weights, random_mask(ours.structure, 1.0)).network(3)
    settings = FineTuneSettings(iterations=100, batch_size=4, learning_rate=1.0, final_rate=0.0)
    tuning = FineTuning(network, task.train, settings, torch.Generator().manual_seed(0))
    tuning.run(deadline=Deadline.after(8))
    assert tuning.done == 8
    expected = [(1 + torch.cos(torch.tensor(torch.pi * n / 8)).item()) / 2 for n in range(8)]
    assert rates == pytest.approx(expected)


# -- the head alone --------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["test_resnet", "test_vit"])
def test_the_head_is_the_classifier_and_the_norms_and_nothing_else_wants_a_gradient(model):
    theirs = example(model, 32)
    network = SubNetwork.of(theirs.backbone, theirs.weights, random_mask(theirs.structure, 1.0)).network(
        3
    )
    with only_tuned(network, theirs.backbone, "head"):
        wanting = {name for name, p in network.named_parameters() if p.requires_grad}
        assert all(p.ndim == 1 or theirs.backbone.classifier in n for n, p in network.named_parameters()
                   if n in wanting)  # fmt: skip
        norm = {"test_resnet": "bn1.weight", "test_vit": "blocks.0.norm1.bias"}[model]
        assert {norm, *theirs.backbone.classifier_tensors} <= wanting
        assert len(wanting) < len(list(network.parameters()))
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_tuning_the_head_moves_nothing_else_and_ranks_all_units(ours, task):
    mask = random_mask(ours.structure, 0.5)
    network = SubNetwork.of(ours.backbone, ours.weights, mask).network(3)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    adapted = adapt(ours, task, replace(SETTINGS, iterations=8, tuned="head"))
    assert adapted.after > 0.6
    for name, parameter in adapted.network.named_parameters():
        assert parameter.grad is None
        assert torch.equal(parameter, before[name]) == (parameter.ndim == 4), name
    for name, kept in mask.items():
        scores = adapted.pruned.scores[name]
        assert (scores[kept] > 0).any()
        assert len(set(scores[kept])) > 1 or kept.sum() == 1


def test_the_head_alone_is_pruned_with_by_the_same_ranking(ours, task):
    target = tuple(max(1, n // 2) for n in random_mask(ours.structure, 0.5).counts)
    settings = replace(SETTINGS, iterations=6, tuned="head")
    adapted = adapt(ours, task, settings, target=target, pruning=PruningSettings(rounds=2))
    assert adapted.pruned.mask.counts == target
