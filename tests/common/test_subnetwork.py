import copy
import json
import math
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save, save_file
from torch import nn
from toys import Example, example, outputs, random_mask

from common.backbone import features
from common.errors import InputError, MaskError, MismatchError, WeightsError
from common.half_precision import in_half_precision
from common.mask import Mask
from common.rebuild import rebuild
from common.subnetwork import SubNetwork, cut, masked
from common.tensor_file import read_tensors


@pytest.fixture(scope="module")
def ours() -> Example:
    return example("test_resnet", 32)


@pytest.fixture(scope="module")
def subnetwork(ours) -> SubNetwork:
    return SubNetwork.of(ours.backbone, ours.weights, random_mask(ours.structure, 0.3))


@pytest.fixture(scope="module")
def data(subnetwork) -> bytes:
    return bytes(subnetwork.to_bytes())


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


def test_a_subnetwork_can_be_trained(ours, data):
    network = SubNetwork.from_bytes(data, ours.structure).network(num_classes=3).train()
    network(torch.randn(4, *ours.backbone.input_size)).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


@pytest.mark.parametrize("model", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
@pytest.mark.parametrize("keep", [0.05, 0.5, 1.0])
def test_a_subnetwork_is_what_the_mask_cuts_and_its_file_holds_it(model, keep):
    """Tensor by tensor, selected into the file or cut one by one; and the backbone is left alone."""
    whole = example(model)
    before = {name: tensor.clone() for name, tensor in whole.weights.items()}
    mask = random_mask(whole.structure, keep)
    made = SubNetwork.of(whole.backbone, whole.weights, mask)
    expected = cut(whole.weights, mask)
    for name in whole.backbone.classifier_tensors:
        del expected[name]
    assert same(made.weights, expected)
    assert same(load(bytes(made.to_bytes())), expected)
    assert bytes(made.to_bytes()) == bytes(SubNetwork(whole.backbone, mask, expected).to_bytes())
    for tensor in made.weights.values():
        tensor.zero_()
    assert same(whole.weights, before)


@pytest.mark.parametrize("healed", [True, False])
def test_a_file_says_whether_its_tensors_are_healed_and_else_nothing_of_it(ours, healed):
    mask = random_mask(ours.structure, 0.3)
    cut_now = SubNetwork.of(ours.backbone, ours.weights, mask, healed=healed)
    given = SubNetwork(ours.backbone, mask, cut_now.weights, healed)
    assert bytes(given.to_bytes()) == bytes(cut_now.to_bytes())
    received = SubNetwork.from_bytes(cut_now.to_bytes(), ours.structure)
    assert received.healed == healed
    assert (b'"healed"' in bytes(cut_now.to_bytes())) == healed


def test_weights_of_any_layout_and_with_gradients_can_be_cut(ours):
    """Channels last, as convolutions on a CPU like them, and parameters straight from a network."""
    mask = random_mask(ours.structure, 0.3)
    expected = SubNetwork.of(ours.backbone, ours.weights, mask)
    others = {
        name: nn.Parameter(t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t)
        if t.is_floating_point()
        else t
        for name, t in ours.weights.items()
    }
    assert same(SubNetwork.of(ours.backbone, others, mask).weights, expected.weights)


# -- whose memory it is ----------------------------------------------------------------------------


def test_a_network_is_made_of_the_bytes_received_without_a_copy(ours, data):
    """Every tensor of it lies in the buffer; what tunes it writes there."""
    received = bytearray(data)
    start = np.frombuffer(received, np.uint8).ctypes.data
    network = SubNetwork.from_bytes(received, ours.structure).network(3)
    for name, tensor in network.state_dict().items():
        if name not in ours.backbone.classifier_tensors:
            assert start <= tensor.data_ptr() < start + len(received)
    with torch.no_grad():
        network.get_parameter("bn1.weight").fill_(7)
    again = SubNetwork.from_bytes(received, ours.structure)
    assert (again.weights["bn1.weight"] == 7).all()


def test_bytes_that_cannot_be_written_to_are_copied_and_stay(ours, data):
    """So the same bytes make as many networks, each of its own, as one likes."""
    kept = bytes(bytearray(data))
    for _ in range(2):
        network = SubNetwork.from_bytes(kept, ours.structure).network(3)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.zero_()
    assert kept == data


def test_the_networks_of_one_subnetwork_share_its_tensors(ours, data):
    """A sub-network is for one network: who wants two decodes it twice."""
    received = SubNetwork.from_bytes(data, ours.structure)
    one, other = received.network(3), received.network(3)
    with torch.no_grad():
        one.get_parameter("bn1.weight").fill_(7)
    assert (other.get_parameter("bn1.weight") == 7).all()
    assert not (SubNetwork.from_bytes(data, ours.structure).weights["bn1.weight"] == 7).any()


def test_a_copy_of_a_network_copies_its_own_tensors_and_not_the_whole_file(ours, data):
    """Buffers too, whose storage is copied whole."""
    network = SubNetwork.from_bytes(data, ours.structure).network(3)
    for tensor in copy.deepcopy(network).state_dict().values():
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


AFTER_THE_FILE_IS_GONE = """
import os, sys
from pathlib import Path
import torch
from common.backbone import Backbone, read_weights
from common.files import read_whole
from common.structure import Structure
from common.subnetwork import SubNetwork

checkpoint, file, described, structure = (Path(argument) for argument in sys.argv[1:])
weights = read_weights(checkpoint, Backbone.from_json(described.read_text()))
received = SubNetwork.from_bytes(read_whole(file), Structure.from_json(structure.read_text()))
network = received.network(3)

def values():
    sums = {name: float(t.double().sum()) for name, t in weights.items()}
    with torch.no_grad():
        features = network.forward_features(torch.ones(1, 3, 32, 32)).sum().item()
    return sums, features, [p.sum().item() for p in network.parameters()]

before = values()
os.truncate(checkpoint, 0)
other = file.with_suffix(".other")
other.write_bytes(b"x" * 100)
os.replace(other, file)
os.truncate(file, 10)
assert values() == before
"""


def test_a_file_that_is_cut_short_or_replaced_later_changes_nothing(ours, data, tmp_path):
    """Not for weights, nor for a network in use: a mapped file would kill the process (SIGBUS)."""
    save_file(dict(ours.weights), tmp_path / "checkpoint.safetensors")
    (tmp_path / "network").write_bytes(data)
    (tmp_path / "backbone").write_text(ours.backbone.to_json())
    (tmp_path / "structure").write_text(ours.structure.to_json())
    names = ("checkpoint.safetensors", "network", "backbone", "structure")
    done = subprocess.run(
        [sys.executable, "-c", AFTER_THE_FILE_IS_GONE, *(str(tmp_path / name) for name in names)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, (done.returncode, done.stderr)


# -- the journey -----------------------------------------------------------------------------------


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


@pytest.mark.parametrize("model", ["test_resnet", "test_vit", "test_convnext"])
def test_a_network_in_half_precision_takes_half_the_bytes_and_computes_in_float32(model):
    whole = example(model)
    mask = random_mask(whole.structure, 0.3)
    single = SubNetwork.of(whole.backbone, whole.weights, mask)
    half = SubNetwork.of(whole.backbone, in_half_precision(whole.weights), mask)
    sent = bytes(half.to_bytes())
    assert 0.5 <= len(sent) / len(single.to_bytes()) < 0.75
    received = SubNetwork.from_bytes(sent, whole.structure)
    assert same(received.weights, half.weights)
    assert bytes(received.to_bytes()) == sent
    network = received.network(3)
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    images = torch.randn(2, *whole.backbone.input_size)
    with torch.no_grad():
        expected, found = features(single.network(3), images), features(network, images)
    assert (found - expected).norm() < 0.01 * expected.norm()
    # What is trained are the network's own numbers: another one starts from what was sent.
    halved = next(name for name, tensor in received.weights.items() if tensor.dtype == torch.float16)
    with torch.no_grad():
        network.get_parameter(halved).fill_(7)
    assert bytes(received.to_bytes()) == sent


def test_a_file_says_whether_it_is_in_half_precision(ours, subnetwork):
    """So that versions that read only float32 refuse it by name."""
    halved = SubNetwork(ours.backbone, subnetwork.mask, in_half_precision(subnetwork.weights))
    for network, word in ((subnetwork, "1"), (halved, "2")):
        _, header = read_tensors(network.to_bytes())
        assert header["maskvote"] == word


@pytest.mark.parametrize("model", ["resnet18", "vit_tiny_patch16_224"])
def test_at_a_tenth_of_the_units_names_and_header_are_at_most_two_percent_of_the_bytes(model):
    whole = example(model, 64)
    structure = whole.structure.only(["internal"])
    mask = random_mask(structure, 0.1)
    sent = SubNetwork.of(whole.backbone, in_half_precision(whole.weights), mask)
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
    with pytest.raises(WeightsError, match=r"not what the mask leaves: layer1\.0\.conv2\.weight"):
        rebuild(ours.backbone, weights, 3, subnetwork.mask)


CUT_OTHERWISE = [
    ("layer1.0.conv1.weight", lambda t: t[:-1]),
    ("layer1.0.conv2.weight", lambda t: t[:, 1:]),
    ("layer1.0.bn1.running_mean", lambda t: t[:0]),
    ("layer1.0.bn1.bias", lambda t: torch.cat([t, t])),
    ("bn1.weight", lambda t: t[None]),
]


@pytest.mark.parametrize(("name", "change"), CUT_OTHERWISE)
def test_a_tensor_that_is_not_cut_as_its_mask_says_is_refused_by_name_and_shapes(
    ours, data, name, change
):
    weights = dict(SubNetwork.from_bytes(data, ours.structure).weights)
    mask = SubNetwork.from_bytes(data, ours.structure).mask
    kept = weights[name].shape
    weights[name] = change(weights[name]).contiguous()
    forged = SubNetwork(ours.backbone, mask, weights).to_bytes()
    found = re.escape(str(tuple(weights[name].shape)))
    with pytest.raises(WeightsError, match=rf"{name} is {found}.*{kept[0]} in dimension 0"):
        SubNetwork.from_bytes(forged, ours.structure)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["layer1.0.conv2.weight", "bn1.running_var"])
def test_a_value_that_is_not_finite_is_refused_by_the_name_of_its_tensor(ours, subnetwork, name, value):
    """A single one, in a weight or in a statistic; the largest number that there is may travel."""

    def received(last: float) -> SubNetwork:
        tensor = subnetwork.weights[name].clone()
        tensor.view(-1)[-1] = last
        sent = SubNetwork(ours.backbone, subnetwork.mask, {**subnetwork.weights, name: tensor})
        return SubNetwork.from_bytes(sent.to_bytes(), ours.structure)

    largest = torch.finfo(torch.float32).max
    assert received(largest).weights[name].view(-1)[-1] == largest
    with pytest.raises(WeightsError, match=f"NaN or infinity is in {name} of the sub-network.* tell its"):
        received(value)


@pytest.mark.parametrize("model", ["test_resnet", "test_vit"])
def test_a_tensor_of_another_shape_or_dtype_never_reaches_a_forward(model):
    """Whatever its dimension, and whether it is cut or not (of all tensors, every fifth)."""
    whole = example(model)
    mask = random_mask(whole.structure.only(["internal"]), 0.3)
    sent = SubNetwork.of(whole.backbone, whole.weights, mask)
    for name, tensor in list(sent.weights.items())[::5]:
        others = [torch.cat([tensor, tensor], dim) for dim in range(tensor.ndim)]
        # float16 is for tensors of two dimensions or more.
        dtype = torch.float16 if tensor.ndim < 2 else torch.bfloat16
        for other in (*others, tensor[None].clone(), tensor.to(dtype)):
            forged = SubNetwork(whole.backbone, mask, {**sent.weights, name: other})
            with pytest.raises(WeightsError, match=re.escape(name)):
                SubNetwork.from_bytes(forged.to_bytes(), mask.structure).network(3)


def test_a_network_of_a_classifier_that_is_cut_has_one_as_wide_as_its_features(ours):
    """Told by the mask, so that no forward has to find it."""
    mask = random_mask(ours.structure, 0.3, kinds=["residual"])
    network = SubNetwork.of(ours.backbone, ours.weights, mask).network(3)
    assert network.fc.in_features < ours.weights["fc.weight"].shape[1]
    assert outputs(network, ours.backbone).shape == (2, 3)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 100, -1, -1000])
def test_a_truncated_file_is_refused(ours, data, length):
    with pytest.raises(WeightsError):
        SubNetwork.from_bytes(data[:length], ours.structure)


@settings(max_examples=60, deadline=None)
@given(at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_in_the_header_is_told_as_an_error_of_ours_or_does_no_harm(at, bit):
    """A mask of another structure, or an input that is damaged: no other error leaves."""
    whole = example("test_resnet", 32)
    sent = SubNetwork.of(whole.backbone, whole.weights, random_mask(whole.structure, 0.05))
    damaged = bytearray(sent.to_bytes())
    header = 8 + int.from_bytes(damaged[:8], "little")
    damaged[int(at * header)] ^= 1 << bit
    try:
        received = SubNetwork.from_bytes(bytes(damaged), whole.structure)
        received.network(3)
    except (InputError, MismatchError):
        pass


def test_a_foreign_safetensors_file_is_refused(ours):
    with pytest.raises(WeightsError, match=r"of no format, not a sub-network"):
        SubNetwork.from_bytes(save({"x": torch.zeros(2)}), ours.structure)


def test_a_file_of_another_format_is_refused_by_name(ours, data):
    with pytest.raises(WeightsError, match="format '3', not a sub-network of format '1' or '2'"):
        SubNetwork.from_bytes(with_header(data, maskvote="3"), ours.structure)


def test_a_subnetwork_of_another_structure_is_refused_with_both_digests(ours, data):
    other = ours.structure.only(["internal"])
    with pytest.raises(MismatchError, match=f"{ours.structure.digest[:12]}.*{other.digest[:12]}"):
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
