"""What inspection says of a backbone is what its cut networks are."""

import json
from dataclasses import replace

import numpy as np
import pytest
from torch import nn

from common.backbone import Backbone
from common.mask import Mask
from common.rebuild import rebuild
from common.structure import Group, Member, Structure
from common.structure.cost import Cost
from common.subnetwork import cut
from server.inspection import Inspection, attention_heads, inspection
from server.proved_table import ProvedTable, proved_table

BOTH = ("internal", "residual")


@pytest.fixture(scope="module")
def resnet(backbone) -> Inspection:
    return inspection(backbone, proved_table(backbone))


@pytest.fixture(scope="module")
def vit() -> Inspection:
    backbone = Backbone.from_timm("test_vit", num_classes=5, image_size=32)
    return inspection(backbone, proved_table(backbone))


def parameters(backbone: Backbone, weights, mask: Mask) -> int:
    network = rebuild(backbone, cut(weights, mask))
    return sum(parameter.numel() for parameter in network.parameters())


def test_a_units_parameters_are_those_that_go_when_it_is_cut(resnet, backbone, weights):
    structure = resnet.table.structure(BOTH)
    whole = parameters(backbone, weights, Mask.full(structure))
    assert whole == resnet.whole.parameters
    assert [entry.group.name for entry in resnet.groups] == list(structure.starts)
    for entry in resnet.groups:
        rows = {name: row.copy() for name, row in Mask.full(structure).items()}
        rows[entry.group.name][0] = False
        assert whole - parameters(backbone, weights, Mask.of(structure, rows)) == entry.parameters
        assert entry.flops > 0


@pytest.mark.parametrize(
    ("choice", "kinds"), [("internal", ("internal",)), ("internal and residual", BOTH)]
)
def test_the_smallest_network_keeps_one_unit_of_every_group(resnet, backbone, weights, choice, kinds):
    structure = resnet.table.structure(kinds)
    scores = {group.name: np.zeros(group.units) for group in structure.groups}
    mask = Mask.keep_top(structure, scores, structure.smallest)
    smallest = resnet.smallest[choice]
    assert smallest.units == len(structure.groups) == mask.kept.sum()
    assert smallest.parameters == parameters(backbone, weights, mask)
    assert 0 < smallest.flops < resnet.whole.flops


def test_groups_are_counted_by_kind(resnet):
    assert {kind: resnet.found(kind) for kind in BOTH} == {"internal": 7, "residual": 4}
    assert {kind: resnet.proved(kind) for kind in BOTH} == {"internal": 7, "residual": 4}
    assert resnet.attention == {}
    assert resnet.frozen == {"fc.weight:0": "it is the network's output"}


def test_a_group_that_is_not_proved_is_frozen_for_its_reason_and_cut_in_no_smallest(resnet):
    table = resnet.table
    last = table.proof.verdicts[-1]
    late = replace(last, outcome="unchecked", difference=float("nan"), reason="no time was left")
    proof = replace(table.proof, verdicts=(*table.proof.verdicts[:-1], late))
    less = inspection(resnet.backbone, replace(table, proof=proof))
    kind = table.found.groups[-1].kind
    assert less.proved(kind) == resnet.proved(kind) - 1
    assert less.frozen[last.group] == "unchecked: no time was left"
    assert less.smallest["internal and residual"].parameters > (
        resnet.smallest["internal and residual"].parameters
    )
    assert less.digest != resnet.digest
    entry = less.to_dict()["groups"][-1]
    assert (entry["verdict"], entry["difference"]) == ("unchecked", None)


def test_all_of_it_is_one_json_object(vit):
    told = json.loads(json.dumps(vit.to_dict(), allow_nan=False))
    assert told["identity"] == vit.backbone.identity
    assert told["digest"] == vit.digest
    assert told["groups"][0] == {
        "name": "blocks.0.attn.qkv.weight:0",
        "kind": "internal",
        "units": 2,
        "exact": True,
        "verdict": "equal",
        "reason": "",
        "difference": vit.groups[0].verdict.difference,
        "parameters_per_unit": 64 * 3 * 32 + 3 * 32 + 32 * 64,  # q, k, v, their biases, projection
        "flops_per_unit": vit.groups[0].flops,
    }
    assert told["smallest"]["internal"]["units"] == 12
    assert told["seconds"]["proof"]["wall"] == vit.table.proof_seconds.wall


# -- attention -------------------------------------------------------------------------------------


def test_heads_of_every_block_can_be_cut_until_their_group_is_frozen(vit):
    assert vit.attention == {f"blocks.{index}.attn": True for index in range(6)}
    structure = vit.table.structure(BOTH).without({"blocks.2.attn.qkv.weight:0": "for a test"})
    heads = attention_heads(vit.backbone.skeleton(), structure)
    assert [name for name, can_be_cut in heads.items() if not can_be_cut] == ["blocks.2.attn"]


class Heads(nn.Module):
    def __init__(self, heads: int, **layers: nn.Module) -> None:
        super().__init__()
        self.num_heads = heads
        for name, layer in layers.items():
            self.add_module(name, layer)


def cutting(*places: tuple[str, int]) -> Structure:
    members = tuple(Member(tensor, dim, np.arange(4, dtype=np.int32), False) for tensor, dim in places)
    group = Group("group", 4, "internal", True, members)
    return Structure({}, (group,), 2, Cost((), ()), Cost((), ()), Cost((), ()))


def test_modules_of_one_head_and_those_around_others_are_no_attention():
    table_of_biases = Heads(4)
    inner = Heads(4, qkv=nn.Linear(4, 12), proj=nn.Linear(4, 4), bias=table_of_biases)
    outer = Heads(4, attn=inner, proj=nn.Linear(4, 4))
    network = nn.ModuleDict({"outer": outer, "single": Heads(1, proj=nn.Linear(4, 4))})
    assert attention_heads(network, cutting(("outer.attn.proj.weight", 1))) == {"outer.attn": True}
    assert attention_heads(network, cutting(("outer.attn.proj.weight", 0))) == {"outer.attn": False}


def test_without_an_output_projection_heads_are_the_rows_of_the_values():
    network = nn.ModuleDict({"attn": Heads(2, qkv=nn.Conv2d(4, 12, 1))})
    assert attention_heads(network, cutting(("attn.qkv.weight", 0))) == {"attn": True}
    assert attention_heads(network, cutting(("attn.qkv.weight", 1))) == {"attn": False}


def test_a_table_of_another_backbone_does_not_pass_for_its_own(resnet, vit):
    """What is shown comes from the table, whose groups stand beside their own verdicts."""
    with pytest.raises(ValueError, match="not those of the groups"):
        ProvedTable(
            resnet.table.found,
            vit.table.proof,
            vit.table.discovery_seconds,
            vit.table.proof_seconds,
            1.0,
            "",
        )
