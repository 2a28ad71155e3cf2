import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import SMALL, small
from torch import nn
from toys import outputs

from common.backbone import Backbone
from common.mask import Mask
from common.module_sizes import HEAD_COUNTS, match_sizes
from common.proof import prove
from common.rebuild import rebuild
from common.subnetwork import cut, masked

HEADED = [
    model for model in SMALL if not model.startswith(("convnext", "mambaout", "inception", "fast", "res"))
]


def weights_of(backbone: Backbone) -> dict[str, torch.Tensor]:
    """Random weights, kept away from zero so that no branch is silent."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = timm.create_model(backbone.model, num_classes=4, **backbone.arguments)
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.2)
    return dict(network.state_dict())


@pytest.mark.parametrize("model", SMALL)
def test_every_group_of_the_family_is_proved(model):
    """Cut alone and all at once; heads are cut wherever there are several."""
    backbone = small(model)
    structure = backbone.structure(("internal", "residual"))
    proof = prove(backbone, structure)
    assert proof.frozen == {}
    assert len(proof.verdicts) == len(structure.groups) > 0


@pytest.mark.parametrize("model", HEADED)
def test_the_heads_of_every_attention_can_be_cut(model):
    """Modules that count more than one head have their output projection read by a group's units."""
    backbone = small(model)
    read = {m.tensor for g in backbone.structure().groups for m in g.members if m.reads}
    counted = {
        name: module
        for name, module in backbone.skeleton().named_modules()
        if any(getattr(module, count, 1) > 1 for count in HEAD_COUNTS) and hasattr(module, "proj")
    }
    assert counted
    for name in counted:
        assert any(tensor.startswith(f"{name}.proj") for tensor in read), name


@pytest.mark.parametrize("model", SMALL)
def test_an_uncut_network_computes_bit_for_bit_what_timms_own_does(model):
    """Inferring widths changes nothing where none was cut."""
    backbone = small(model)
    weights = weights_of(backbone)
    own = timm.create_model(backbone.model, num_classes=4, **backbone.arguments)
    own.load_state_dict(weights)
    assert torch.equal(outputs(rebuild(backbone, weights), backbone), outputs(own, backbone))


@settings(max_examples=4, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize(
    "model",
    ["swin_tiny_patch4_window7_224", "cait_xxs24_224", "tiny_vit_5m_224", "beit_base_patch16_224"],
)
def test_any_number_of_heads_may_be_left_in_every_attention(model, data):
    """The cut network computes what the masked one does, and counts the heads that it has."""
    backbone = small(model)
    structure = backbone.structure()
    counts = [data.draw(st.integers(1, units)) for units in structure.sizes]
    seed = data.draw(st.integers(0, 10**6))
    scores = {g.name: np.random.default_rng(seed).random(g.units) for g in structure.groups}
    mask = Mask.keep_top(structure, scores, counts)
    weights = weights_of(backbone)
    network = rebuild(backbone, cut(weights, mask))
    expected = outputs(rebuild(backbone, masked(weights, mask)), backbone)
    assert torch.allclose(outputs(network, backbone), expected, rtol=1e-3, atol=1e-4)
    for group in structure.groups:
        if ".attn.qkv" in group.name:
            attention = network.get_submodule(group.name.split(".qkv")[0])
            assert attention.num_heads == mask.counts[structure.groups.index(group)]


def resized(layer: nn.Module, **shapes: tuple[int, ...]) -> nn.Module:
    for name, shape in shapes.items():
        setattr(layer, name, nn.Parameter(torch.empty(shape, device="meta")))
    match_sizes(layer)
    return layer


def test_layers_say_what_their_tensors_say():
    """Groups of a depthwise convolution go with its channels, those of a grouped one stay."""
    conv = resized(nn.Conv2d(8, 6, 3, device="meta"), weight=(5, 3, 3, 3))
    assert (conv.in_channels, conv.out_channels, conv.groups) == (3, 5, 1)
    depthwise = resized(nn.Conv2d(8, 8, 3, groups=8, device="meta"), weight=(3, 1, 3, 3))
    assert (depthwise.in_channels, depthwise.out_channels, depthwise.groups) == (3, 3, 3)
    doubled = resized(nn.Conv2d(8, 16, 3, groups=8, device="meta"), weight=(6, 1, 3, 3))
    assert (doubled.in_channels, doubled.out_channels, doubled.groups) == (3, 6, 3)
    grouped = resized(nn.Conv2d(8, 12, 3, groups=4, device="meta"), weight=(8, 1, 3, 3))
    assert (grouped.in_channels, grouped.out_channels, grouped.groups) == (4, 8, 4)
    transposed = resized(nn.ConvTranspose2d(8, 6, 2, device="meta"), weight=(5, 3, 2, 2))
    assert (transposed.in_channels, transposed.out_channels) == (5, 3)
    linear = resized(nn.Linear(8, 6, device="meta"), weight=(2, 7))
    assert (linear.in_features, linear.out_features) == (7, 2)
    norm = resized(nn.LayerNorm(8, device="meta"), weight=(5,))
    assert norm.normalized_shape == (5,)
    assert resized(nn.GroupNorm(1, 8, device="meta"), weight=(5,)).num_channels == 5


def test_other_peoples_classes_of_the_same_name_are_left_alone():
    """A rule is for one class of timm's, not for a name."""

    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shape = (8, 1, 1)

    module = Scale()
    match_sizes(module)
    assert module.shape == (8, 1, 1)
