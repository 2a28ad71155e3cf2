"""Gradients of a batch in parts are those of the whole batch, wherever each image is taken by itself."""

from collections import Counter

import pytest
import torch
from torch import nn
from toys import Example, example, images_of

from common.gradients import add_gradients, parts_of
from common.importance import Taylor
from common.mask import Mask
from common.subnetwork import SubNetwork

INDICES = torch.tensor([3, 0, 11, 7, 5, 8, 1, 10, 2, 6])


def network_of(ours: Example) -> nn.Module:
    return SubNetwork.of(ours.backbone, ours.weights, Mask.full(ours.structure)).network(3)


def gradients(network: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def of_batch(ours: Example, *, training: bool, **options) -> tuple[torch.Tensor, float]:
    network = network_of(ours).train(training)
    # A classifier of zeros sends no gradient back.
    nn.init.normal_(network.get_submodule(ours.backbone.classifier).weight, std=0.1,
                    generator=torch.Generator().manual_seed(0))  # fmt: skip
    images = images_of(ours.backbone, per_class=4)
    loss = add_gradients(network, images, INDICES, **options)
    return gradients(network), loss


@pytest.mark.parametrize("micro_batch", [1, 3, 4, 9])
@pytest.mark.parametrize(("model", "training"), [("test_vit", True), ("test_resnet", False)])
def test_without_batch_norm_parts_of_any_size_give_the_whole_batchs_gradient(
    model, training, micro_batch
):
    """Also where the parts are of unequal sizes: every image counts the same."""
    ours = example(model, 32)
    whole, loss = of_batch(ours, training=training)
    parts, same = of_batch(ours, training=training, micro_batch=micro_batch)
    assert (parts - whole).abs().max() < 1e-5 * max(1.0, float(whole.abs().max()))
    assert same == pytest.approx(loss, rel=1e-5)


def test_batch_norm_normalises_by_the_part_that_is_in_memory():
    ours = example("test_resnet", 32)
    whole, _ = of_batch(ours, training=True)
    parts, _ = of_batch(ours, training=True, micro_batch=2)
    assert not torch.allclose(parts, whole, rtol=0.01)


@pytest.mark.parametrize("micro_batch", [0, 10, 99])
def test_a_part_as_large_as_the_batch_is_the_batch_to_the_last_bit(micro_batch):
    ours = example("test_resnet", 32)
    whole, _ = of_batch(ours, training=True)
    assert torch.equal(of_batch(ours, training=True, micro_batch=micro_batch)[0], whole)


def test_parts_are_as_equal_as_can_be_so_that_none_is_a_single_image_without_need():
    assert [len(part) for part in parts_of(torch.arange(33), 32)] == [17, 16]
    assert [len(part) for part in parts_of(torch.arange(10), 4)] == [4, 3, 3]
    assert torch.equal(torch.cat(parts_of(INDICES, 3)), INDICES)


def test_half_precision_gives_nearly_the_same_gradient_in_full_precision():
    ours = example("test_vit", 32)
    whole, _ = of_batch(ours, training=True)
    half, _ = of_batch(ours, training=True, precision="bf16")
    assert half.dtype == torch.float32
    assert not torch.equal(half, whole)
    assert torch.cosine_similarity(half, whole, dim=0) > 0.99


def test_taylor_sees_the_accumulated_gradient_of_a_batch():
    """Its scores are those of the whole batch: an absolute value is taken once, not part by part."""
    ours = example("test_vit", 32)
    images = images_of(ours.backbone, per_class=4)
    scores = []
    for micro_batch in (0, 3):
        network, mask = network_of(ours), Mask.full(ours.structure)
        nn.init.ones_(network.head.weight)
        taylor = Taylor(network, mask)
        add_gradients(network, images, INDICES, micro_batch)
        taylor.observe()
        scores.append(torch.cat([torch.from_numpy(row) for row in taylor.scores().values()]))
    assert torch.allclose(*scores, atol=1e-6)


def test_every_layer_of_a_convolutional_network_computes_channels_last():
    """The other way takes up to twice as long on CPUs."""
    ours = example("resnet18", 32)
    network, seen = network_of(ours).train(), Counter()
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            module.register_forward_hook(
                lambda _, inputs, output: seen.update(
                    [output.is_contiguous(memory_format=torch.channels_last)]
                )
            )
    add_gradients(network, images_of(ours.backbone, per_class=2), torch.arange(4))
    assert seen == {True: 40}
