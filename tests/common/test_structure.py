import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import SMALL, small
from torch import nn
from toys import (
    INPUT,
    Attention,
    Branches,
    Concat,
    Depthwise,
    Gated,
    Lonely,
    Mlp,
    Relative,
    Residual,
    Sorted,
    Standardised,
    Tied,
    Uneven,
    example,
    found_in,
    outputs,
    random_mask,
)

from common.backbone import Backbone
from common.errors import InputError, MismatchError, UnsupportedModel
from common.flops import counted_flops
from common.mask import Mask
from common.rebuild import rebuild
from common.structure import Group, Structure
from common.structure.discovery import discover
from common.structure.structure import _from_runs, _to_runs
from common.subnetwork import cut, masked

ROOT = Path(__file__).resolve().parents[2]
NAMED_MODELS = (
    "resnet18",
    "resnet50",
    "mobilenetv3_small_100",
    "efficientnet_b0",
    "convnext_atto",
    "vit_tiny_patch16_224",
    "deit_tiny_patch16_224",
)
IMAGE_SIZE = 64


def members(group: Group) -> dict[str, list[int]]:
    return {f"{m.tensor}:{m.dim}": m.unit_of.tolist() for m in group.members}


def readers(group: Group) -> set[str]:
    return {f"{m.tensor}:{m.dim}" for m in group.members if m.reads}


def kinds(structure: Structure) -> dict[str, tuple]:
    return {g.name: (g.units, g.kind, g.exact) for g in structure.groups}


# -- toys, by hand ---------------------------------------------------------------------------------


def test_the_hidden_layers_of_an_mlp_are_groups_and_its_classifier_is_frozen():
    """Each hidden unit is a row of one layer (with its bias) and a column of the next."""
    structure = found_in(Mlp)
    assert kinds(structure) == {
        "fc1.weight:0": (7, "internal", True),
        "fc2.weight:0": (5, "internal", True),
    }
    one, two = structure.groups
    assert members(one) == {
        name: list(range(7)) for name in ("fc1.weight:0", "fc1.bias:0", "fc2.weight:1")
    }
    assert members(two) == {name: list(range(5)) for name in ("fc2.weight:0", "fc.weight:1")}
    assert readers(one) == {"fc2.weight:1"}
    assert readers(two) == {"fc.weight:1"}
    assert structure.frozen == {"fc.weight:0": "it is the network's output"}


@settings(deadline=None)
@given(a=st.integers(1, 7), b=st.integers(1, 5), classes=st.integers(1, 9))
def test_the_costs_of_an_mlp_are_those_counted_by_hand(a, b, classes):
    structure = found_in(Mlp)
    parameters = 12 * a + a + a * b + b * classes + classes
    assert structure.parameters((a, b), classes) == parameters
    assert structure.flops((a, b), classes) == 2 * (12 * a + a * b + b * classes)


def test_a_residual_stream_is_one_group_through_everything_added_to_it():
    """The branch's inner channels are another, which batch norm and its statistics go with."""
    structure = found_in(Residual)
    assert kinds(structure) == {
        "stem.weight:0": (4, "residual", True),
        "conv1.weight:0": (6, "internal", True),
    }
    stream, inner = structure.groups
    assert set(members(stream)) == {
        "stem.weight:0", "conv1.weight:1", "conv2.weight:0", "conv2.bias:0", "fc.weight:1"
    }  # fmt: skip
    assert readers(stream) == {"conv1.weight:1", "fc.weight:1"}
    assert set(members(inner)) == {
        "conv1.weight:0", "bn1.weight:0", "bn1.bias:0", "bn1.running_mean:0", "bn1.running_var:0",
        "conv2.weight:1",
    }  # fmt: skip
    assert readers(inner) == {"conv2.weight:1"}


def test_the_costs_of_a_residual_network_are_those_counted_by_hand():
    """Four positions; padding is computed as well; a class costs a row and a bias."""
    structure = found_in(Residual)
    for stream, inner, classes in ((4, 6, 5), (2, 3, 5), (1, 1, 2), (3, 6, 10)):
        parameters = 3 * stream + 9 * stream * inner + 2 * inner + (inner + 1) * stream
        parameters += (stream + 1) * classes
        flops = 2 * 4 * (3 * stream + 9 * stream * inner + inner * stream) + 2 * stream * classes
        assert structure.parameters((stream, inner), classes) == parameters
        assert structure.flops((stream, inner), classes) == flops
    assert structure.parameters() == structure.parameters((4, 6), 5)
    assert structure.flops() == structure.flops((4, 6), 5)


def test_a_depthwise_filter_goes_with_its_channel():
    (group,) = found_in(Depthwise).groups
    assert members(group) == {
        name: [0, 1, 2, 3]
        for name in ("expand.weight:0", "expand.bias:0", "depthwise.weight:0", "depthwise.bias:0",
                     "fc.weight:1")
    }  # fmt: skip
    assert readers(group) == {"fc.weight:1"}


def test_concatenated_parts_are_groups_of_their_own_that_share_a_reader():
    """The join reads the left part at its first columns and the right one at the rest."""
    structure = found_in(Concat)
    assert list(kinds(structure)) == ["left.weight:0", "right.weight:0", "join.weight:0"]
    left, right, _ = structure.groups
    assert members(left) == {"left.weight:0": [0, 1], "join.weight:1": [0, 1, -1, -1, -1]}
    assert members(right) == {"right.weight:0": [0, 1, 2], "join.weight:1": [-1, -1, 0, 1, 2]}
    ((_, of_join),) = [d for d in structure.dims["join.weight"] if d[0] == 1]
    assert of_join.tolist() == [0, 1, 2, 3, 4]
    assert structure.parameters((1, 2, 3), classes=2) == 3 * 1 + 3 * 2 + 3 * (1 + 2) + 3 * 2 + 2


def test_a_head_of_fused_attention_is_its_queries_keys_and_values_together():
    """Rows of all three parts, and the columns that read the head's output."""
    structure = found_in(Attention)
    assert kinds(structure) == {
        "qkv.weight:0": (2, "internal", True),
        "proj.weight:0": (4, "internal", False),
    }
    heads, stream = structure.groups
    a_part = [0, 0, 0, 1, 1, 1]
    assert members(heads) == {
        "qkv.weight:0": a_part * 3,
        "qkv.bias:0": a_part * 3,
        "proj.weight:1": a_part,
    }
    assert set(members(stream)) == {
        "proj.weight:0", "proj.bias:0", "norm.weight:0", "norm.bias:0", "fc.weight:1"
    }  # fmt: skip


def test_the_costs_of_attention_are_those_counted_by_hand():
    """Per head: 4 x 4 products of width 3 with the keys, and as many with the values."""
    structure = found_in(Attention)
    for heads, width, classes in ((2, 4, 2), (1, 3, 5)):
        linear = 2 * 4 * (3 * 9 * heads + 3 * heads * width) + 2 * width * classes
        assert structure.flops((heads, width), classes) == linear + heads * 2 * (2 * 4 * 4 * 3)
        parameters = (3 + 1) * 9 * heads + (3 * heads + 1) * width + 2 * width + (width + 1) * classes
        assert structure.parameters((heads, width), classes) == parameters


def test_the_halves_of_a_gated_mlp_are_cut_in_pairs():
    """Value and gate of one unit are two rows of the projection."""
    gate, _ = found_in(Gated).groups
    assert members(gate) == {
        "fc1.weight:0": [0, 1, 2, 3] * 2, "fc1.bias:0": [0, 1, 2, 3] * 2, "fc2.weight:1": [0, 1, 2, 3]
    }  # fmt: skip


def test_chunks_of_unequal_size_cannot_be_cut_and_say_so():
    """The network asks for two chunks; their sizes follow from the sum, not from what was kept."""
    structure = found_in(Uneven)
    assert list(kinds(structure)) == ["fc2.weight:0"]
    assert structure.frozen["fc1.weight:0"] == "its parts are not of one size"


def test_what_a_standardised_weight_reads_is_cut_inexactly_and_what_it_writes_exactly():
    """Its mean and variance are over what is read."""
    structure = found_in(Standardised)
    assert kinds(structure) == {
        "stem.weight:0": (4, "internal", False),
        "gain:0": (5, "internal", True),
    }
    written, read = structure.groups
    assert readers(read) == {"conv.weight:1"}
    assert set(members(written)) == {"conv.weight:0", "gain:0", "fc.weight:1"}


def test_a_tensor_of_several_names_is_cut_under_each_and_counted_once():
    structure = found_in(Tied)
    (group,) = structure.groups
    names = [
        f"{layer}.{tensor}"
        for layer in ("first", "second")
        for tensor in ("0.weight:0", "0.bias:0", "2.weight:1")
    ]
    assert set(members(group)) == set(names)
    assert structure.parameters((3,), classes=2) == 3 * 12 + 3 + 12 * 3 + 12 + 2 * 12 + 2


def test_parallel_branches_that_are_added_are_no_residual_stream():
    assert kinds(found_in(Branches)) == {"left.weight:0": (4, "internal", True)}


def test_a_group_of_one_unit_is_no_group():
    """There would be nothing to choose; the reason says so."""
    structure = found_in(Lonely)
    assert list(kinds(structure)) == ["fc2.weight:0"]
    assert structure.frozen["fc1.weight:0"] == "it is all one unit"


def test_a_sum_written_in_letters_couples_what_the_letters_share():
    """einsum: a head's queries are read with a table that both heads share, and stay one unit."""
    structure = found_in(Relative)
    heads, _ = structure.groups
    assert kinds(structure) == {
        "qkv.weight:0": (2, "internal", True),
        "proj.weight:0": (4, "internal", True),
    }
    assert members(heads)["proj.weight:1"] == [0, 0, 0, 1, 1, 1]
    assert "table:2" not in members(heads)
    linear = 2 * 4 * (3 * 9 + 3 * 4) + 2 * 4 * 2
    assert structure.flops((1, 4)) == linear + 3 * (2 * 4 * 4 * 3)


def test_an_operation_without_a_rule_freezes_what_it_touches_and_nothing_else():
    structure = found_in(Sorted)
    assert list(kinds(structure)) == ["fc2.weight:0"]
    assert structure.frozen["fc1.weight:0"] == "no rule for the operation 'cumprod'"


def test_a_network_that_export_cannot_follow_is_refused_with_its_reason():
    class Undecided(nn.Module):
        def forward(self, images):
            return images if images.sum() > 0 else -images

    with pytest.raises(UnsupportedModel, match=r"cannot follow this network on inputs of \(3, 2, 2\)"):
        discover(Undecided(), INPUT, ["fc"], {})


def test_choosing_kinds_and_freezing_groups_keeps_the_rest_whole():
    """What is left out is named, and its units still cost what they cost."""
    structure = found_in(Residual)
    inner = structure.only(["internal"])
    assert list(kinds(inner)) == ["conv1.weight:0"]
    assert inner.frozen["stem.weight:0"] == "left out by choice"
    assert inner.parameters((2,)) == structure.parameters((4, 2))
    assert inner.flops((2,), classes=9) == structure.flops((4, 2), classes=9)
    stream = structure.without({"conv1.weight:0": "it fails"})
    assert stream.frozen["conv1.weight:0"] == "it fails"
    assert stream.parameters((3,)) == structure.parameters((3, 6))
    assert stream.frozen["fc.weight:0"] == structure.frozen["fc.weight:0"]


def test_a_structure_knows_its_units_by_group_and_over_all():
    structure = found_in(Concat)
    assert structure.sizes == (2, 3, 4)
    assert structure.units == 9
    assert structure.starts == {"left.weight:0": 0, "right.weight:0": 2, "join.weight:0": 5}
    assert structure.smallest == (1, 1, 1)
    assert structure.group("right.weight:0").units == 3
    with pytest.raises(KeyError, match=r"no group 'middle'; there are left\.weight:0"):
        structure.group("middle")


# -- timm's models ---------------------------------------------------------------------------------


def relative_difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


@pytest.mark.parametrize("model", NAMED_MODELS)
def test_cutting_internal_groups_computes_what_masking_them_does(model):
    """A third of every group: to 1e-5 in single precision, and it is not what the whole computes."""
    ours = example(model, IMAGE_SIZE)
    mask = random_mask(ours.structure, 1 / 3, kinds=["internal"])
    small = outputs(rebuild(ours.backbone, cut(ours.weights, mask)), ours.backbone)
    large = outputs(rebuild(ours.backbone, masked(ours.weights, mask)), ours.backbone)
    whole = outputs(rebuild(ours.backbone, ours.weights), ours.backbone)
    assert relative_difference(small, large) < 1e-5
    assert relative_difference(whole, large) > 1e-2


@pytest.mark.parametrize("model", NAMED_MODELS)
def test_cutting_the_residual_stream_computes_what_masking_does_where_it_is_exact(model):
    """Everything at once; under a layer norm the cut network runs, and gives something finite."""
    ours = example(model, IMAGE_SIZE)
    mask = random_mask(ours.structure, 1 / 3)
    small = outputs(rebuild(ours.backbone, cut(ours.weights, mask)), ours.backbone)
    assert torch.isfinite(small).all()
    if all(group.exact for group in ours.structure.groups):
        large = outputs(rebuild(ours.backbone, masked(ours.weights, mask)), ours.backbone)
        assert relative_difference(small, large) < 1e-5
    else:
        assert model.startswith(("convnext", "vit", "deit"))


def test_only_residual_streams_under_a_norm_are_inexact():
    for model in NAMED_MODELS:
        inexact = [g for g in example(model, IMAGE_SIZE).structure.groups if not g.exact]
        assert bool(inexact) == model.startswith(("convnext", "vit", "deit"))
        assert {g.kind for g in inexact} <= {"residual"}


@pytest.mark.parametrize(
    ("model", "groups", "units"),
    [
        ("resnet18", 8, 2 * (64 + 128 + 256 + 512)),
        ("resnet50", 32 + 1, 64 + 2 * (3 * 64 + 4 * 128 + 6 * 256 + 3 * 512)),
        ("vit_tiny_patch16_224", 12 + 12, 12 * (3 + 768)),
        ("deit_tiny_patch16_224", 12 + 12, 12 * (3 + 768)),
        ("convnext_atto", 12, 4 * (2 * 40 + 2 * 80 + 6 * 160 + 2 * 320)),
    ],
)
def test_the_internal_groups_of_known_models_are_all_found(model, groups, units):
    """One per block's first conv (resnet18), two per bottleneck and the stem (resnet50), heads and
    MLP per block (ViT), MLP per block (ConvNeXt)."""
    internal = example(model, IMAGE_SIZE).structure.only(["internal"])
    assert (len(internal.groups), internal.units) == (groups, units)


@pytest.mark.parametrize("model", NAMED_MODELS)
def test_parameters_and_operations_are_those_of_the_cut_network(model):
    """Counted on it by torch, residual stream and all, for another number of classes."""
    ours = example(model, IMAGE_SIZE)
    for seed, keep in ((1, 0.1), (2, 0.6)):
        check_costs(ours.backbone, ours.structure, random_mask(ours.structure, keep, seed), 11)


@pytest.mark.parametrize("model", SMALL)
def test_parameters_and_operations_of_every_family_are_those_of_the_cut_network(model):
    backbone = small(model)
    structure = backbone.structure(("internal", "residual"))
    check_costs(backbone, structure, random_mask(structure, 0.4, 3), 7)


@pytest.mark.parametrize("model", ["test_resnet", "test_vit", "test_efficientnet"])
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_costs_are_exact_for_any_mask(model, data):
    ours = example(model)
    row = st.lists(st.booleans(), min_size=ours.structure.units, max_size=ours.structure.units)
    kept = np.array(data.draw(row))
    kept[list(ours.structure.starts.values())] = True
    check_costs(ours.backbone, ours.structure, Mask(ours.structure, kept), data.draw(st.integers(1, 9)))


def check_costs(backbone: Backbone, structure: Structure, mask: Mask, classes: int) -> None:
    whole = timm.create_model(backbone.model, num_classes=classes, **backbone.arguments)
    network = rebuild(backbone, cut(whole.state_dict(), mask)).requires_grad_(False)
    assert structure.parameters(mask.counts, classes) == sum(p.numel() for p in network.parameters())
    assert structure.flops(mask.counts, classes) == counted_flops(network, backbone.input_size)
    saved = network.state_dict().values()
    assert structure.weight_bytes(mask.counts, classes) == sum(tensor.nbytes for tensor in saved)


def test_a_model_that_timm_does_not_know_is_refused_with_near_names():
    with pytest.raises(UnsupportedModel, match=r"no model 'resnet19'; did you mean .*resnet1\d"):
        Backbone.from_timm("resnet19")


def test_a_name_near_nothing_is_refused_with_where_to_look():
    with pytest.raises(UnsupportedModel, match=r"see timm\.list_models"):
        Backbone.from_timm("@@@@")


def test_an_image_size_that_the_model_cannot_take_is_refused():
    """One patch of 16 does not fit into 8 pixels."""
    with pytest.raises(UnsupportedModel, match=r"\(3, 8, 8\).*choose another input size"):
        Backbone.from_timm("test_vit", image_size=8).structure()


@pytest.mark.parametrize("image_size", [0, -32])
def test_an_image_size_below_one_is_refused_at_once(image_size):
    with pytest.raises(InputError, match="image size"):
        Backbone.from_timm("resnet18", image_size=image_size)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 30), st.sampled_from([0, 1])), min_size=1),
    st.lists(st.integers(-1, 50), min_size=1),
)
def test_unit_numbers_are_the_same_after_a_journey_as_runs(runs, any_numbers):
    """Whatever they are; those of channels, heads and halves take a few numbers."""
    numbers = np.concatenate([first + step * np.arange(length) for first, length, step in runs])
    for unit_of in (numbers.astype(np.int32), np.array(any_numbers, dtype=np.int32)):
        again = _from_runs(_to_runs(unit_of))
        assert again.dtype == np.int32
        assert np.array_equal(again, unit_of)
    assert _to_runs(np.arange(512, dtype=np.int32)) == [0, 512, 1]
    assert _to_runs(np.repeat([0, 1, 2], 64).astype(np.int32)) == [0, 64, 0, 1, 64, 0, 2, 64, 0]


@pytest.mark.parametrize(
    "runs",
    [
        [0, 0, 1],
        [0, -1, 1],
        [0, 2**40, 1],
        [0, 2**70, 1],
        [0, 2**62, 1] * 4,
        [0, 1],
        [[0, 1, 1]],
        ["a", 1, 1],
    ],
)
def test_runs_that_are_none_are_refused_before_memory_is_taken(runs):
    text = example("test_resnet").structure.to_json()
    data = json.loads(text)
    data["patterns"][0] = runs
    with pytest.raises(InputError, match=r"not a structure|no structure"):
        Structure.from_json(json.dumps(data))


# -- JSON and digest -------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["test_resnet", "test_vit"])
def test_a_structure_is_the_same_after_a_journey_as_json(model):
    structure = example(model).structure
    again = Structure.from_json(structure.to_json())
    assert again == structure
    assert again.digest == structure.digest
    assert again.to_json() == structure.to_json()
    kept = random_mask(structure, 0.3).counts
    assert (again.parameters(kept), again.flops(kept)) == (
        structure.parameters(kept),
        structure.flops(kept),
    )


def test_the_digest_is_the_same_in_another_process():
    """Whatever the seed of Python's hashes."""
    code = (
        "from common.backbone import Backbone\n"
        "for model in ('test_resnet', 'test_vit'):\n"
        "    print(Backbone.from_timm(model, num_classes=4).structure(('internal', 'residual')).digest)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    here = [example(model).structure.digest for model in ("test_resnet", "test_vit")]
    assert ran.stdout.split() == here


def test_the_digest_differs_by_model_arguments_image_size_and_groups():
    variants = [
        Backbone.from_timm("test_resnet").structure(),
        Backbone.from_timm("test_resnet").structure(("internal", "residual")),
        Backbone.from_timm("test_resnet", image_size=32).structure(),
        Backbone.from_timm("test_resnet", arguments={"in_chans": 1}).structure(),
        Backbone.from_timm("test_vit").structure(),
    ]
    assert len({structure.digest for structure in variants}) == len(variants)


def test_the_digest_is_the_same_for_any_number_of_classes():
    """A device's own classes are no part of what a mask means."""
    few, many = (Backbone.from_timm("test_resnet", num_classes=k).structure() for k in (2, 50))
    assert few.digest == many.digest


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "null", '{"format": 2}', b"\xff", '{"format": 2, "groups": 3}']
)
def test_what_is_no_structure_is_refused(text):
    with pytest.raises(InputError, match="not a structure"):
        Structure.from_json(text)


def test_a_structure_of_another_format_is_refused_by_name():
    data = json.loads(example("test_resnet").structure.to_json())
    with pytest.raises(MismatchError, match="format 99, this version reads 2"):
        Structure.from_json(json.dumps(data | {"format": 99}))
