"""What crosses the wire: values that break a rule, or do not belong together, cannot exist."""

from dataclasses import replace

import pytest

from common.backbone import Backbone
from common.errors import InputError, MismatchError
from common.exchange import Assignment, Neighbour, Offer
from common.mask import Mask
from common.probe import Probe
from common.structure import Structure
from common.subnetwork import SubNetwork

NAN = float("nan")


@pytest.fixture(scope="module")
def subnetwork(offer) -> SubNetwork:
    return offer.probe.subnetwork


def assignment_of(subnetwork: SubNetwork, **changes) -> Assignment:
    values = {
        "request_id": "0" * 32,
        "classes": 5,
        "method": "mvp",
        "origin": "vote",
        "mask": subnetwork.mask,
        "subnetwork": subnetwork,
        "target": subnetwork.mask.counts,
        "rounds": 3,
        "neighbours": (),
    }
    return Assignment(**{**values, **changes})


def test_an_offers_parts_belong_together(backbone, structure, probe):
    """Also when the structure came over the wire, where tuples have become lists."""
    received = Structure.from_json(structure.to_json())
    assert Offer(backbone, received, probe).structure.digest == structure.digest


def test_a_structure_of_another_model_is_not_offered(offer):
    other = Backbone.from_timm("test_resnet", image_size=64)
    with pytest.raises(MismatchError, match=r"\[3, 32, 32\].*\[3, 64, 64\]"):
        Offer(offer.backbone, other.structure(), offer.probe)


def test_a_probe_cut_by_another_structure_is_not_offered(offer):
    other = offer.structure.without({offer.structure.groups[0].name: "a test"})
    with pytest.raises(MismatchError, match=f"{offer.structure.digest[:12]}.*{other.digest[:12]}"):
        Offer(offer.backbone, other, offer.probe)


def test_a_probe_of_another_backbone_is_not_offered(offer, subnetwork):
    """Of the same model, but with other input normalisation: its features would be others."""
    other = replace(offer.backbone, mean=(0.0, 0.0, 0.0))
    probe = Probe(SubNetwork(other, subnetwork.mask, subnetwork.weights), offer.probe.center)
    with pytest.raises(MismatchError, match="cut it anew"):
        Offer(offer.backbone, offer.structure, probe)


@pytest.mark.parametrize("similarity", [NAN, -1e-9, 1.0000001, float("inf")])
def test_a_neighbours_similarity_outside_0_to_1_is_refused(similarity):
    with pytest.raises(InputError, match="lies in"):
        Neighbour("entry", similarity)


@pytest.mark.parametrize("request_id", ["", "0" * 31, "0" * 33, "g" * 32, "A" * 32, "0" * 32 + "\n"])
def test_an_assignment_to_no_request_is_refused(subnetwork, request_id):
    with pytest.raises(InputError, match="32 hexadecimal digits"):
        assignment_of(subnetwork, request_id=request_id)


@pytest.mark.parametrize("classes", [0, 1, 1001])
def test_an_assignment_for_no_task_is_refused(subnetwork, classes):
    with pytest.raises(InputError, match=f"a choice for {classes} classes; from 2 to 1000"):
        assignment_of(subnetwork, classes=classes)


@pytest.mark.parametrize("rounds", [-1, 1001])
def test_an_assignment_of_rounds_without_end_is_refused(subnetwork, rounds):
    with pytest.raises(InputError, match=f"{rounds} rounds"):
        assignment_of(subnetwork, rounds=rounds)
    assert assignment_of(subnetwork, rounds=1000).rounds == 1000


def test_a_target_keeps_at_least_one_and_at_most_what_is_held(subnetwork):
    held = subnetwork.mask.counts
    for target in (held[1:], (0, *held[1:]), (held[0] + 1, *held[1:])):
        with pytest.raises(InputError, match="the target keeps"):
            assignment_of(subnetwork, target=target)
    least = Mask.keep_top(
        subnetwork.mask.structure,
        {name: subnetwork.mask[name].astype(float) for name in subnetwork.mask},
        [1] * len(held),
    )
    assert assignment_of(subnetwork, target=least.counts).target == least.counts
