"""Cost arrays: all costs at once are what the formula of each says, to the last unit of int64."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import Mlp, found_in

from common.backbone import Backbone
from common.errors import InputError
from common.structure import Structure
from common.structure.cost import MAX_COST, MAX_INDICES, Cost, Term
from common.structure.cost_arrays import CostArrays

SIZES = (4, 6)
MODELS: dict[str, dict[str, Any]] = {
    "resnet18": {},
    "vit_tiny_patch16_224": {},
    "densenet121": {"block_config": [4, 4, 4, 4]},
    "mobilenetv3_small_100": {},
    "swin_tiny_patch4_window7_224": {"depths": [1, 1, 2, 1]},
}

counts = st.tuples(*(st.integers(0, size) for size in SIZES))
numbers = st.integers(0, 50)
axes = st.tuples(
    numbers, st.lists(st.tuples(st.integers(0, len(SIZES) - 1), numbers), max_size=3).map(tuple)
)
terms = st.lists(st.builds(Term, numbers, st.lists(axes, max_size=3).map(tuple)), max_size=4).map(tuple)
costs = st.lists(st.builds(Cost, terms, terms), min_size=1, max_size=4)


@cache
def structure_of(model: str) -> Structure:
    backbone = Backbone.from_timm(model, num_classes=7, image_size=64, arguments=MODELS[model])
    return backbone.structure(("internal", "residual"))


def test_costs_are_those_counted_by_hand():
    """Of 2 and 3 units the first is 7 + 5 x 10 x 6, and 4 x 2 + 1 for a class."""
    wide, narrow = (1, ((0, 3), (1, 1))), (0, ((1, 2),))  # 1 + 3 x 2 + 1 x 3, 2 x 3
    first = Cost((Term(7, ()), Term(5, (wide, narrow))), (Term(4, ((0, ((0, 1),)),)), Term(1, ())))
    at = CostArrays([first, Cost((), ()), Cost((Term(2, ()),), ())], SIZES).at
    assert at((2, 3), 0).tolist() == [7 + 5 * 10 * 6, 0, 2]
    assert at((2, 3), 11).tolist() == [7 + 5 * 10 * 6 + 11 * 9, 0, 2]
    assert at((0, 0), 11).tolist() == [7 + 11, 0, 2]


@settings(deadline=None)
@given(costs=costs, kept=counts, classes=st.integers(0, MAX_INDICES))
def test_costs_of_any_form_are_what_the_formula_of_each_says(costs, kept, classes):
    assert CostArrays(costs, SIZES).at(kept, classes).tolist() == [c.at(kept, classes) for c in costs]


@pytest.mark.parametrize("model", MODELS)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_costs_of_known_models_are_what_the_formula_of_each_says(model, data):
    structure = structure_of(model)
    kept = data.draw(st.tuples(*(st.integers(0, size) for size in structure.sizes)))
    classes = data.draw(st.integers(0, 1000))
    assert structure.parameters(kept, classes) == structure.parameter_cost.at(kept, classes)
    assert structure.flops(kept, classes) == structure.flop_cost.at(kept, classes)
    assert structure.weight_bytes(kept, classes) == structure.byte_cost.at(kept, classes)
    moments = [cost.at(kept, classes) for cost in structure.activation_costs]
    assert structure.activation_bytes(kept, classes) == max(moments)


def test_costs_are_exact_up_to_the_largest_there_may_be():
    """Also where a product on the way is above it, of which nothing comes."""
    one = (0, ((0, 1),))
    huge, none = (2**40 + 1, ()), (0, ((1, 0),))
    cost = Cost((Term(MAX_COST - 5, ()), Term(1, (one,)), Term(1, (huge, huge, none))), ())
    at = CostArrays([cost], (5, 6)).at
    assert at((5, 6), 0).tolist() == [MAX_COST]
    assert at((4, 6), 3).tolist() == [MAX_COST - 1]


@pytest.mark.parametrize(
    ("kept", "classes"),
    [((5, 6), 2), ((4, -1), 2), ((4,), 2), ((4, 6, 1), 2), ((4, 6), -1), ((4, 6), MAX_INDICES + 1)],
)
def test_what_no_sub_network_has_costs_nothing_known(kept, classes):
    with pytest.raises(InputError, match=r"give 0 to \[4, 6\] units, and 0 to 16777216 classes"):
        CostArrays([Cost((), ())], SIZES).at(kept, classes)


@pytest.mark.parametrize(
    ("cost", "says"),
    [
        (Cost((Term(-1, ()),), ()), "a number outside 0 to"),
        (Cost((Term(9, ((0, ((0, -1),)),)),), ()), "a number outside 0 to"),
        (Cost((), (Term(1, ((-1, ((0, 1),)),)),)), "a number outside 0 to"),
        (Cost((Term(2**63, ((0, ((0, 0),)),)),), ()), "a number outside 0 to"),
        (Cost((Term(MAX_COST, ()), Term(1, ((0, ((1, 1),)),))), ()), "of the whole network is above"),
        (Cost((), (Term(2**39, ()),)), "of the whole network is above"),
    ],
)
def test_costs_that_fall_or_could_not_be_counted_are_no_structure(cost, says):
    """Not even for the most classes there may be: 2**24 times 2**39 is 2**63."""
    known = found_in(Mlp)
    with pytest.raises(InputError, match=says):
        replace(known, flop_cost=cost)
    with pytest.raises(InputError, match=says):
        replace(known, activation_costs=(Cost((), ()), cost))


def test_units_and_classes_beyond_what_a_tensor_holds_are_no_structure():
    known = found_in(Mlp)
    with pytest.raises(InputError, match=r"fc1\.weight:0 has 16777217 units"):
        replace(known, groups=(replace(known.groups[0], units=MAX_INDICES + 1), known.groups[1]))
    for classes in (-1, MAX_INDICES + 1):
        with pytest.raises(InputError, match=f"it has {classes} classes"):
            replace(known, classes=classes)


def test_numbers_that_are_none_in_a_text_are_no_structure():
    known = found_in(Mlp)
    for number in ("1e999", "NaN", str(2**70)):
        text = known.to_json().replace(f'"classes":{known.classes}', f'"classes":{number}')
        with pytest.raises(InputError, match="structure"):
            Structure.from_json(text)


def test_the_cost_arrays_of_a_structure_are_no_part_of_it():
    structure = found_in(Mlp)
    fresh = Structure.from_json(structure.to_json())
    before = fresh.to_json()
    assert np.array_equal(fresh.parameters(), structure.parameters())
    assert fresh == structure
    assert fresh.to_json() == before
