import copy
import math

import pytest
import torch
from torch.nn.functional import cross_entropy
from toys import Example, example, images_of, task_of

from common.errors import InputError
from common.fine_tune import Diverged, FineTuning
from common.images import PixelImages, batches
from common.mask import Mask
from common.subnetwork import SubNetwork
from common.tuning_settings import FineTuneSettings


@pytest.fixture(scope="module")
def ours() -> Example:
    return example("test_resnet", 32)


def network_of(ours: Example):
    """Copied, so that its tensors are aligned in memory, and equal computations give equal bits."""
    return copy.deepcopy(SubNetwork.of(ours.backbone, ours.weights, Mask.full(ours.structure)).network(3))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fine_tune(network, images, settings, generator, **hooks) -> FineTuning:
    tuning = FineTuning(network, images, settings, generator)
    tuning.run(**hooks)
    return tuning


def weights_of(network) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()]).clone()


def test_no_index_comes_twice_before_a_new_permutation():
    stream = batches(7, 3, generator())
    seen = torch.cat([next(stream), next(stream)])
    assert len(set(seen.tolist())) == 6


def test_batches_are_never_larger_than_the_data():
    assert sorted(next(batches(4, 32, generator())).tolist()) == [0, 1, 2, 3]


def test_every_index_is_drawn_equally_often_in_the_long_run():
    stream = batches(10, 4, generator())
    counts = torch.bincount(torch.cat([next(stream) for _ in range(1000)]), minlength=10)
    assert counts.min() > 350
    assert counts.max() < 450


def test_tuning_lowers_the_loss_and_moves_every_parameter(ours):
    task = task_of(ours.backbone)
    network = network_of(ours)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    fine_tune(network, task.train, FineTuneSettings(iterations=12, batch_size=12), generator())
    with torch.no_grad():
        logits = network(task.train.batch(torch.arange(len(task.train))))
    assert cross_entropy(logits, task.train.labels) < math.log(3)
    assert not any(torch.equal(p, before[name]) for name, p in network.named_parameters())
    assert not network.training


@pytest.mark.parametrize("clip_norm", [1e6, 0.01])
def test_one_step_without_momentum_is_gradient_descent_with_the_gradient_clipped(ours, clip_norm):
    """Rate times gradient, as the hook saw it; where its norm is above the limit, scaled to it."""
    network = network_of(ours)
    before = weights_of(network)
    gradients = []
    plain = FineTuneSettings(
        iterations=1, learning_rate=0.1, momentum=0.0, weight_decay=0.0, clip_norm=clip_norm
    )

    def record(iteration: int) -> None:
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters()]).clone())

    fine_tune(network, task_of(ours.backbone).train, plain, generator(), after_backward=record)
    (gradient,) = gradients
    step = 0.1 * gradient * min(1.0, clip_norm / float(gradient.norm()))
    assert torch.allclose(weights_of(network), before - step, atol=1e-6)


def test_the_same_seed_tunes_to_the_same_weights_and_another_to_others(ours):
    settings = FineTuneSettings(iterations=3, batch_size=8)
    tuned = []
    for seed in (1, 1, 2):
        network = network_of(ours)
        fine_tune(network, task_of(ours.backbone).train, settings, generator(seed))
        tuned.append(weights_of(network))
    assert torch.equal(tuned[0], tuned[1])
    assert not torch.equal(tuned[0], tuned[2])


def test_evaluating_between_iterations_changes_nothing(ours):
    """Even if it switches the network's mode."""
    task, settings = task_of(ours.backbone), FineTuneSettings(iterations=3, batch_size=8)
    tuned = []
    for evaluate in (False, True):
        network = network_of(ours)

        def look(done: int, network=network, evaluate=evaluate) -> None:
            if evaluate:
                with torch.no_grad():
                    network.eval()(task.evaluation.batch(torch.arange(3)))

        fine_tune(network, task.train, settings, generator(), after_iteration=look)
        tuned.append(torch.cat([t.flatten().float() for t in network.state_dict().values()]))
    assert torch.equal(*tuned)


def test_the_hooks_are_called_once_an_iteration_with_its_number(ours):
    backward: list[int] = []
    done: list[int] = []
    fine_tune(
        network_of(ours),
        task_of(ours.backbone).train,
        FineTuneSettings(iterations=3, batch_size=4),
        generator(),
        after_backward=backward.append,
        after_iteration=done.append,
    )
    assert backward == [0, 1, 2]
    assert done == [1, 2, 3]


@pytest.mark.parametrize("learning_rate", [1e12, 1e30])
def test_a_loss_that_is_not_finite_ends_tuning_at_once(ours, learning_rate):
    done: list[int] = []
    seen: list[int] = []
    settings = FineTuneSettings(iterations=8, learning_rate=learning_rate)
    with pytest.raises(Diverged) as told:
        fine_tune(
            network_of(ours),
            task_of(ours.backbone).train,
            settings,
            generator(),
            after_backward=seen.append,
            after_iteration=done.append,
        )
    assert str(told.value) == (
        f"tuning diverged: the loss is nan in iteration {len(done) + 1} of 8, at a learning rate of "
        f"{learning_rate:g}; give a smaller one"
    )
    assert len(done) == len(seen) < 7  # whoever ranks by gradients sees none of these


def test_a_last_step_that_overflows_is_told_though_no_loss_follows(ours):
    network = network_of(ours)

    def overflow(iteration: int) -> None:
        if iteration == 1:
            network.fc.weight.grad[0, 0] = math.inf

    settings = FineTuneSettings(iterations=2, batch_size=8)
    with pytest.raises(Diverged, match="weights are not finite in iteration 2 of 2"):
        fine_tune(network, task_of(ours.backbone).train, settings, generator(), after_backward=overflow)


def test_no_iterations_change_nothing(ours):
    network = network_of(ours)
    before = weights_of(network)
    none = FineTuneSettings(iterations=0)
    assert fine_tune(network, task_of(ours.backbone).train, none, generator()).done == 0
    assert torch.equal(weights_of(network), before)


@pytest.mark.parametrize("momentum", [0.9, 0.0])
@pytest.mark.parametrize("after", [0, 1, 4, 6])
def test_tuning_goes_on_in_another_process_as_if_it_had_never_stopped(ours, momentum, after):
    """To the last bit, on the same batches: 6 iterations of 8 images are more than one pass over 36."""
    settings = FineTuneSettings(iterations=6, batch_size=8, momentum=momentum)
    task, whole = task_of(ours.backbone), network_of(ours)
    never_stopped = fine_tune(whole, task.train, settings, generator())

    stopped, lot = network_of(ours), generator(5)
    stored = {}

    def store(done: int) -> None:
        if done == after:
            stored["network"] = {n: t.clone() for n, t in stopped.state_dict().items()}
            stored["steps"] = {n: t.clone() for n, t in tuning.stored().items()}

    tuning = FineTuning(stopped, task.train, settings, lot)
    lot.set_state(generator().get_state())  # somebody else may draw before the first batch is drawn
    store(0)
    tuning.run(after_iteration=store)
    resumed = network_of(ours)
    resumed.load_state_dict(stored["network"])
    seen: list[int] = []
    again = FineTuning(resumed, task.train, settings, generator(99))
    again.go_on(after, stored["steps"])
    again.run(after_iteration=seen.append)
    assert seen == list(range(after + 1, 7))
    assert again.done == never_stopped.done == 6
    assert torch.equal(weights_of(resumed), weights_of(whole))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


def test_a_single_image_is_tuned_on_with_the_statistics_there_are(ours):
    """Batch norm cannot take those of one image: at one pixel it would have no spread."""
    images = images_of(ours.backbone, per_class=1)
    one = PixelImages(images.pixels[:1], images.labels[:1], ours.backbone)
    network = network_of(ours)
    before = network.bn1.running_mean.clone()
    fine_tune(network, one, FineTuneSettings(iterations=2), generator())
    assert torch.equal(network.bn1.running_mean, before)


@pytest.mark.parametrize(
    "wrong",
    [
        {"iterations": -1},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"fit_images": 0},
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        FineTuneSettings(**wrong)
