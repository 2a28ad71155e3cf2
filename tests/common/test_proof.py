import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import timm
import torch
from toys import example, outputs, random_mask

from common.backbone import Backbone
from common.proof import TOLERANCE, Outcome, Proof, Verdict, prove
from common.rebuild import rebuild
from common.structure import Group, Structure
from common.subnetwork import cut, masked


@pytest.fixture(scope="module")
def resnet():
    return example("test_resnet", 32)


@pytest.fixture(scope="module")
def shvit() -> tuple[Backbone, Structure]:
    backbone = Backbone.from_timm("shvit_s1", num_classes=4, image_size=64)
    return backbone, backbone.structure(("internal", "residual"))


def altered(structure: Structure, index: int, change) -> Structure:
    """The structure with one group changed, as if discovery had been wrong about it."""
    groups = list(structure.groups)
    groups[index] = change(groups[index])
    return dataclasses.replace(structure, groups=tuple(groups))


@pytest.mark.parametrize("model", ["test_resnet", "test_vit", "test_efficientnet", "test_convnext"])
def test_every_group_of_a_plain_model_is_proved(model):
    """Exact ones are equal within the tolerance, the others run; nothing is frozen."""
    ours = example(model, 32)
    proof = prove(ours.backbone, ours.structure)
    assert [v.group for v in proof.verdicts] == [g.name for g in ours.structure.groups]
    for verdict, group in zip(proof.verdicts, ours.structure.groups, strict=True):
        assert verdict.outcome == ("equal" if group.exact else "runs"), verdict
        assert verdict.difference <= TOLERANCE[torch.float32] or not group.exact
    assert proof.frozen == {}
    assert proof.proved(ours.structure).digest == ours.structure.digest


def test_branches_that_start_at_zero_still_show_an_effect():
    """ResNet's last batch norm of every block starts at zero here; the proof draws another scale."""
    backbone = Backbone.from_timm("test_resnet", num_classes=4, image_size=32)
    start: Any = timm.create_model("test_resnet")
    assert not start.layer1[0].bn2.weight.any()
    verdicts = prove(backbone, backbone.structure()).verdicts
    assert "no effect" not in {verdict.outcome for verdict in verdicts}


def test_groups_whose_forward_has_their_size_written_in_are_frozen_and_the_rest_cuts_right(shvit):
    """One number says how wide what SHViT's attention takes and gives is; the rest equals masking."""
    backbone, structure = shvit
    proof = prove(backbone, structure)
    values = {g.name for g in structure.groups if ".qkv." in g.name}
    assert values
    assert values <= set(proof.frozen) < {g.name for g in structure.groups}
    assert all("the cut network raises" in reason for reason in proof.frozen.values())
    proved = proof.proved(structure)
    assert {g.name for g in proved.groups} == {g.name for g in structure.groups} - set(proof.frozen)
    assert set(proof.frozen.items()) <= set(proved.frozen.items())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = timm.create_model(backbone.model, num_classes=4, **backbone.arguments).eval()
    weights = dict(network.state_dict())
    mask = random_mask(proved, 0.4, kinds=["internal"])
    small = outputs(rebuild(backbone, cut(weights, mask)), backbone)
    large = outputs(rebuild(backbone, masked(weights, mask)), backbone)
    assert torch.allclose(small, large, atol=1e-5)


def test_a_group_that_misses_a_layer_fails_and_is_frozen_alone(resnet):
    """Its reader is not cut along, so the layers no longer fit."""

    def without_reader(group: Group) -> Group:
        return dataclasses.replace(group, members=tuple(m for m in group.members if not m.reads))

    proof = prove(resnet.backbone, altered(resnet.structure, 3, without_reader))
    assert set(proof.frozen) == {resnet.structure.groups[3].name}
    assert proof.verdicts[3].outcome == "fails"
    assert math.isnan(proof.verdicts[3].difference)


def test_a_group_that_pairs_the_wrong_units_differs_and_is_frozen_alone(resnet):
    """All shapes fit; only the outputs tell."""

    def shifted(group: Group) -> Group:
        members = [
            dataclasses.replace(m, unit_of=np.roll(m.unit_of, 1)) if m.reads else m for m in group.members
        ]
        return dataclasses.replace(group, members=tuple(members))

    proof = prove(resnet.backbone, altered(resnet.structure, 3, shifted))
    assert set(proof.frozen) == {resnet.structure.groups[3].name}
    assert proof.verdicts[3].outcome == "differs"
    assert proof.verdicts[3].difference > TOLERANCE[torch.float32]
    assert "outputs lie" in proof.verdicts[3].reason


def test_heads_whose_keys_are_mixed_up_are_noticed():
    """Queries of one head with keys of another: under uniform attention that would not show."""
    vit = example("test_vit", 32)
    index = next(k for k, g in enumerate(vit.structure.groups) if "attn.qkv" in g.name)

    def mixed_up(group: Group) -> Group:
        members = []
        for member in group.members:
            unit_of = member.unit_of.copy()
            if not member.reads:
                keys = np.split(unit_of, 3)[1]
                keys[:] = (keys + 1) % group.units
            members.append(dataclasses.replace(member, unit_of=unit_of))
        return dataclasses.replace(group, members=tuple(members))

    proof = prove(vit.backbone, altered(vit.structure, index, mixed_up))
    assert proof.verdicts[index].outcome == "differs"


def test_a_group_that_nothing_reads_has_no_effect_and_is_frozen(resnet):
    """Then cut and masked network would be equal whatever was cut."""

    def unread(group: Group) -> Group:
        members = tuple(
            dataclasses.replace(m, reads=False) for m in group.members if m.tensor == "bn1.num"
        )
        return dataclasses.replace(group, members=members)

    proof = prove(resnet.backbone, altered(resnet.structure, 3, unread))
    assert {proof.verdicts[3].group: proof.verdicts[3].outcome} == {
        resnet.structure.groups[3].name: "no effect"
    }
    assert len(proof.frozen) == 1


def test_groups_that_fail_only_together_lose_the_one_that_breaks_the_rest(resnet, monkeypatch):
    """A network that cannot lose channels in two of its stages at once: the later one is frozen."""

    def fragile(backbone, weights):
        one, other = (len(weights[f"layer{k}.0.conv1.weight"]) for k in (1, 3))
        if one < 32 and other < 48:
            raise ZeroDivisionError("both at once")
        return rebuild(backbone, weights)

    monkeypatch.setattr("common.proof.rebuild", fragile)
    proof = prove(resnet.backbone, resnet.structure)
    assert proof.frozen == {
        "layer3.0.conv1.weight:0": "fails: with other groups cut as well, "
        "the cut network raises ZeroDivisionError: both at once"
    }


def test_what_is_not_checked_in_time_is_frozen_for_that(resnet):
    proof = prove(resnet.backbone, resnet.structure, seconds=0.0)
    assert {v.outcome for v in proof.verdicts} == {"unchecked"}
    assert "took longer than 0 seconds" in proof.verdicts[0].reason
    assert proof.proved(resnet.structure).groups == ()


def test_the_same_seed_proves_the_same_and_global_draws_are_left_alone(resnet):
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    one, two = (prove(resnet.backbone, resnet.structure, seed=5) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert one == two


def test_progress_is_told_group_by_group(resnet):
    told = []
    prove(resnet.backbone, resnet.structure, watch=lambda done, total: told.append((done, total)))
    assert told == [(k + 1, 11) for k in range(11)]


def test_a_proof_freezes_all_but_equal_and_runs():
    outcomes: tuple[Outcome, ...] = ("equal", "runs", "differs", "no effect", "fails", "unchecked")
    proof = Proof(tuple(Verdict(o, o, reason="so") for o in outcomes))
    assert proof.frozen == {o: f"{o}: so" for o in outcomes[2:]}
