import numpy as np
import pytest
import torch
from toys import Example, example, random_mask, structure_of, task_of

from common.errors import InputError
from common.mask import Mask
from common.pruning import Pruned, Stage, stages_of
from common.subnetwork import SubNetwork
from common.tuning import Tuning
from common.tuning_settings import FineTuneSettings, PruningSettings

SETTINGS = FineTuneSettings(iterations=10, batch_size=8, learning_rate=0.01)


@pytest.fixture(scope="module")
def ours() -> Example:
    return example("test_resnet", 32)


def prune(ours: Example, target, *, seed: int = 0, start: Mask | None = None, **options) -> Pruned:
    mask = Mask.full(ours.structure) if start is None else start
    settings = options.pop("settings", SETTINGS)
    pruning = options.pop("pruning", PruningSettings(rounds=2))
    tuning = Tuning(
        SubNetwork.of(ours.backbone, ours.weights, mask).network(3),
        ours.backbone,
        mask,
        task_of(ours.backbone, per_class=6).train,
        settings,
        torch.Generator().manual_seed(seed),
        stages_of(settings, mask, target, pruning),
    )
    look = options.pop("after_iteration", None)
    scores = tuning.run(after_iteration=None if look is None else lambda done: look(done, tuning.network))
    return Pruned(tuning.network, tuning.mask, scores)


@pytest.fixture(scope="module")
def tenth(ours) -> list[int]:
    return [max(1, units // 10) for units in ours.structure.sizes]


@pytest.fixture(scope="module")
def pruned(ours, tenth) -> Pruned:
    return prune(ours, tenth)


def test_the_network_ends_at_the_target_of_every_group(ours, tenth, pruned):
    """The mask says so and the network has just those parameters."""
    assert pruned.mask.counts == tuple(tenth)
    assert sum(p.numel() for p in pruned.network.parameters()) == ours.structure.parameters(tenth, 3)


def test_units_kept_score_above_none_and_the_dropped_ones_come_last(pruned):
    for name, kept in pruned.mask.items():
        assert np.isneginf(pruned.scores[name][~kept]).all()
        assert np.isfinite(pruned.scores[name][kept]).all()
    assert any((pruned.scores[name][kept] > 0).any() for name, kept in pruned.mask.items())


def test_what_is_pruned_was_held_before(ours, tenth):
    """Masks are nested: nothing comes back."""
    start = random_mask(ours.structure, 0.5)
    assert prune(ours, tenth, start=start).mask.within(start)


def test_sizes_fall_by_equal_factors_and_never_rise(ours, tenth):
    """Seen after every iteration, through the number of parameters."""
    seen = []

    def look(done: int, network) -> None:
        seen.append((done, sum(p.numel() for p in network.parameters())))

    prune(ours, tenth, after_iteration=look)
    iterations, sizes = zip(*seen, strict=True)
    assert list(iterations) == list(range(1, 11))
    assert list(sizes) == sorted(sizes, reverse=True)
    halfway = [
        max(t, round(n * (t / n) ** 0.5)) for n, t in zip(ours.structure.sizes, tenth, strict=True)
    ]
    at_rounds = [ours.structure.parameters(kept, 3) for kept in (ours.structure.sizes, halfway, tenth)]
    assert sorted(set(sizes), reverse=True) == at_rounds


def test_a_target_above_what_is_held_keeps_what_is_held(ours):
    start = random_mask(ours.structure, 0.2)
    assert prune(ours, ours.structure.sizes, start=start).mask == start


def test_the_same_seed_prunes_to_the_same_network(ours, tenth, pruned):
    again, other = prune(ours, tenth), prune(ours, tenth, seed=1)
    assert again.mask == pruned.mask
    for name, tensor in pruned.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], tensor)
    assert other.mask != pruned.mask


def test_the_caller_keeps_its_weights(ours, tenth):
    before = {name: tensor.clone() for name, tensor in ours.weights.items()}
    prune(ours, tenth)
    assert all(torch.equal(before[name], tensor) for name, tensor in ours.weights.items())


def test_the_stages_of_ten_iterations_in_two_rounds_by_hand(ours, tenth):
    """Six of the ten prune, in rounds of three; the other four settle what is left."""
    mask = Mask.full(ours.structure)
    halfway = tuple(
        max(t, round(n * (t / n) ** 0.5)) for n, t in zip(ours.structure.sizes, tenth, strict=True)
    )
    assert stages_of(SETTINGS, mask, tenth, PruningSettings(rounds=2)) == [
        Stage(3, 1.0, halfway),
        Stage(3, 1.0, tuple(tenth)),
        Stage(4, SETTINGS.final_rate),
    ]
    whole = [Stage(10, SETTINGS.final_rate)]
    assert stages_of(SETTINGS, mask) == whole
    assert stages_of(SETTINGS, mask, mask.counts, PruningSettings()) == whole


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"settle": 1.0}, {"settle": -0.1}])
def test_settings_that_cannot_work_are_refused(wrong):
    with pytest.raises(InputError, match="at least one round and a share"):
        PruningSettings(**wrong)


def test_a_backbone_of_which_nothing_can_be_cut_is_refused(ours):
    with pytest.raises(InputError, match="nothing of this backbone can be cut"):
        prune(ours, [], start=Mask.full(structure_of(())))


def test_no_more_iterations_are_done_than_asked_for(ours, tenth):
    done = []
    few = FineTuneSettings(iterations=2, batch_size=8)
    rounds = PruningSettings(rounds=4)
    pruned = prune(
        ours, tenth, settings=few, pruning=rounds, after_iteration=lambda count, _: done.append(count)
    )
    assert pruned.mask.counts == tuple(tenth)
    assert done == [1, 2]
