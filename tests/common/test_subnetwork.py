import json
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from toys import Example, example, outputs, random_mask

from common.backbone import features
from common.errors import InputError, MaskError, WeightsError
from common.mask import Mask
from common.rebuild import rebuild
from common.subnetwork import SubNetwork, cut, masked


@pytest.fixture(scope="module")
def ours() -> Example:
    return example("test_resnet", 32)


@pytest.fixture(scope="module")
def subnetwork(ours) -> SubNetwork:
    return SubNetwork.of(ours.backbone, ours.weights, random_mask(ours.structure, 0.3))


@pytest.fixture(scope="module")
def data(subnetwork) -> bytes:
    return subnetwork.to_bytes()


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("model", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), first=st.floats(0.2, 1.0), share=st.floats(0.1, 1.0))
def test_cutting_twice_is_cutting_once(model, seed, first, share):
    """Down to a mask and then, from what is left, to one within it."""
    whole = example(model)
    larger = random_mask(whole.structure, first, seed)
    kept = larger.kept & random_mask(whole.structure, share, seed + 1).kept
    for name, start in whole.structure.starts.items():
        kept[start + int(np.flatnonzero(larger[name])[0])] = True
    smaller = Mask(whole.structure, kept)
    twice = cut(cut(whole.weights, larger), smaller, within=larger)
    assert same(twice, cut(whole.weights, smaller))


def test_cutting_selects_the_rows_and_columns_of_the_kept_units(ours):
    """By hand, for one group of a residual block; other tensors are whole."""
    name = "layer1.0.conv1.weight:0"
    row = np.zeros(32, dtype=bool)
    row[[3, 7]] = True
    mask = Mask.of(ours.structure, dict(Mask.full(ours.structure)) | {name: row})
    left = cut(ours.weights, mask)
    assert torch.equal(left["layer1.0.conv1.weight"], ours.weights["layer1.0.conv1.weight"][[3, 7]])
    assert torch.equal(left["layer1.0.bn1.running_var"], ours.weights["layer1.0.bn1.running_var"][[3, 7]])
    assert torch.equal(left["layer1.0.conv2.weight"], ours.weights["layer1.0.conv2.weight"][:, [3, 7]])
    assert torch.equal(left["layer2.0.conv1.weight"], ours.weights["layer2.0.conv1.weight"])


def test_cutting_and_masking_leave_the_weights_alone_and_share_no_memory(ours):
    """Also where nothing is cut from a tensor."""
    before = {name: tensor.clone() for name, tensor in ours.weights.items()}
    for weights in (
        cut(ours.weights, Mask.full(ours.structure)),
        masked(ours.weights, random_mask(ours.structure, 0.5)),
    ):
        for tensor in weights.values():
            tensor.zero_()
    assert same(ours.weights, before)


def test_units_that_are_gone_cannot_be_asked_for(ours):
    larger, other = (random_mask(ours.structure, 0.3, seed) for seed in (1, 2))
    with pytest.raises(MaskError, match="no longer hold"):
        cut(cut(ours.weights, larger), other, within=larger)


@pytest.mark.parametrize("model", ["test_resnet", "test_vit", "test_convnext"])
def test_a_rebuilt_network_holds_what_was_cut_and_nothing_of_the_backbone(model):
    """No tensor is left on the meta device, the parameters are as many as the mask says, and they
    are the very tensors that were given."""
    whole = example(model)
    mask = random_mask(whole.structure, 0.2)
    weights = cut(whole.weights, mask)
    network = rebuild(whole.backbone, weights)
    tensors = [*network.parameters(), *network.buffers()]
    assert not any(tensor.is_meta for tensor in tensors)
    assert sum(p.numel() for p in network.parameters()) == mask.parameters
    assert all(network.state_dict()[name].data_ptr() == weights[name].data_ptr() for name in weights)
    assert all(p.requires_grad for p in network.parameters())
    assert not network.training


def test_the_layers_of_a_rebuilt_network_say_what_they_are(ours):
    """Their numbers are those of their tensors, not those of the backbone."""
    network = rebuild(ours.backbone, cut(ours.weights, random_mask(ours.structure, 0.3)))
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            assert module.weight.shape[:2] == (module.out_channels, module.in_channels // module.groups)
        elif isinstance(module, torch.nn.BatchNorm2d):
            assert module.weight.shape == (module.num_features,)
        elif isinstance(module, torch.nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features)


@pytest.mark.parametrize("model", ["test_resnet", "test_vit", "test_convnext"])
def test_a_subnetwork_gives_the_masked_backbones_features_and_logits_of_zero(model):
    """Its classifier, for a device's own classes, starts at zero."""
    whole = example(model)
    mask = random_mask(whole.structure, 0.3, kinds=["internal"])
    network = SubNetwork.of(whole.backbone, whole.weights, mask).network(num_classes=7)
    logits = outputs(network, whole.backbone)
    assert logits.shape == (2, 7)
    assert not logits.any()
    images = torch.randn(2, *whole.backbone.input_size)
    with torch.no_grad():
        expected = features(rebuild(whole.backbone, masked(whole.weights, mask)), images)
        assert torch.allclose(features(network, images), expected, rtol=1e-4, atol=1e-5)


def test_a_subnetwork_can_be_trained(ours, subnetwork):
    network = subnetwork.network(num_classes=3).train()
    network(torch.randn(4, *ours.backbone.input_size)).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


@pytest.mark.parametrize("model", ["test_resnet", "test_vit"])
def test_a_subnetwork_is_the_same_after_a_journey_as_bytes(model):
    """Description, mask and every tensor; and the classifier stayed behind."""
    whole = example(model)
    sent = SubNetwork.of(whole.backbone, whole.weights, random_mask(whole.structure, 0.3))
    received = SubNetwork.from_bytes(sent.to_bytes(), whole.structure)
    assert received.backbone == sent.backbone
    assert received.mask == sent.mask
    assert same(received.weights, sent.weights)
    assert received.parameters == sent.parameters
    assert not set(whole.backbone.classifier_tensors) & set(received.weights)
    fresh = whole.structure.parameters(sent.mask.counts, classes=0)
    assert sent.parameters == fresh


@pytest.mark.parametrize("model", ["resnet18", "vit_tiny_patch16_224"])
def test_at_a_tenth_of_the_units_names_and_header_are_at_most_two_percent_of_the_bytes(model):
    whole = example(model, 64)
    structure = whole.structure.only(["internal"])
    mask = random_mask(structure, 0.1)
    sent = SubNetwork.of(whole.backbone, whole.weights, mask)
    payload = sum(t.numel() * t.element_size() for t in sent.weights.values())
    assert payload < len(sent.to_bytes()) <= 1.02 * payload


# -- what does not fit, and what is damaged --------------------------------------------------------


def test_tensors_missing_unknown_or_of_another_rank_are_refused_by_name(ours, subnetwork):
    weights = dict(subnetwork.weights)
    weights["bn1.weight"] = weights["bn1.weight"][None]
    weights["extra"] = weights.pop("bn1.bias")
    with pytest.raises(
        WeightsError, match=r"unknown \['extra'\], missing \['bn1\.bias'\].*\['bn1\.weight'\]"
    ):
        rebuild(ours.backbone, weights, 3)


def test_tensors_that_do_not_fit_together_are_refused(ours, subnetwork):
    """Each has the right name and rank, but one layer gives other channels than the next takes."""
    weights = dict(subnetwork.weights)
    weights["layer1.0.conv2.weight"] = weights["layer1.0.conv2.weight"][:, 1:]
    with pytest.raises(WeightsError):
        rebuild(ours.backbone, weights, 3)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 100, -1, -1000])
def test_a_truncated_file_is_refused(ours, data, length):
    with pytest.raises(WeightsError):
        SubNetwork.from_bytes(data[:length], ours.structure)


@settings(max_examples=60, deadline=None)
@given(at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_in_the_header_is_told_as_an_input_error_or_does_no_harm(at, bit):
    """Nothing but an InputError leaves, whatever the header has become."""
    whole = example("test_resnet", 32)
    sent = SubNetwork.of(whole.backbone, whole.weights, random_mask(whole.structure, 0.05))
    damaged = bytearray(sent.to_bytes())
    header = 8 + int.from_bytes(damaged[:8], "little")
    damaged[int(at * header)] ^= 1 << bit
    try:
        received = SubNetwork.from_bytes(bytes(damaged), whole.structure)
        received.network(3)
    except InputError:
        pass


def test_a_foreign_safetensors_file_is_refused(ours):
    with pytest.raises(WeightsError, match=r"format None, not a sub-network"):
        SubNetwork.from_bytes(save({"x": torch.zeros(2)}), ours.structure)


def test_a_file_of_another_format_is_refused_by_name(ours, data):
    with pytest.raises(WeightsError, match="format '2'"):
        SubNetwork.from_bytes(with_header(data, maskvote="2"), ours.structure)


def test_a_subnetwork_of_another_structure_is_refused_with_both_digests(ours, data):
    other = ours.structure.only(["internal"])
    with pytest.raises(MaskError, match=f"{ours.structure.digest[:12]}.*{other.digest[:12]}"):
        SubNetwork.from_bytes(data, other)


@pytest.mark.parametrize(
    "change", [{"mask": "!!"}, {"mask": "AAAA"}, {"mask": ""}, {"backbone": "{}"}, {"backbone": "null"}]
)
def test_a_header_that_holds_no_mask_or_no_backbone_is_refused(ours, data, change):
    with pytest.raises(InputError):
        SubNetwork.from_bytes(with_header(data, **change), ours.structure)


def with_header(data: bytes, **changes: str) -> bytes:
    """The file with some of its metadata changed."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] |= changes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[end:]


class Trap:
    """Unpickling one leaves a mark."""

    sprung = False

    def __reduce__(self):
        return spring, ()


def spring() -> None:
    Trap.sprung = True


def test_nothing_is_ever_unpickled(ours):
    """A pickle that runs code when it is loaded is refused, and the code did not run."""
    for data in (pickle.dumps(Trap()), pickle.dumps(Trap(), protocol=0)):
        with pytest.raises(WeightsError):
            SubNetwork.from_bytes(data, ours.structure)
    assert not Trap.sprung
    pickle.loads(pickle.dumps(Trap()))
    assert Trap.sprung
