"""Budgets of operations, bytes and milliseconds: none is ever exceeded, and what can be used is."""

import time
from dataclasses import replace
from functools import cache, partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.backbone import Backbone
from common.budget import Budget, Counts, LatencyTable, demands
from common.errors import BudgetError, MismatchError
from common.structure import Structure
from server.budget import allot

CLASSES = 10
MODELS = ("resnet18", "mobilenetv3_small_100", "vit_tiny_patch16_224")
LIMITS = ("parameters", "flops", "weight_bytes", "activation_bytes", "latency_ms")


@cache
def structure_of(model: str, residual: bool = False) -> Structure:
    structure = Backbone.from_timm(model, image_size=64).structure(("internal", "residual"))
    return structure if residual else structure.only(("internal",))


def table_of(structure: Structure) -> LatencyTable:
    """A device that does 10 million operations in a millisecond, and takes one for anything."""
    flops = [
        structure.flops([max(1, round(size * ratio)) for size in structure.sizes], CLASSES)
        for ratio in (0.001, 0.1, 0.3, 0.6, 1.0)
    ]
    return LatencyTable(structure.digest, tuple((at, 1 + at / 1e7) for at in flops))


def budget_at(structure: Structure, shares: dict[str, float], **others) -> Budget:
    """Limits so far on the way, in the log, from the smallest sub-network (0) to the backbone (1)."""
    table = table_of(structure)
    costs = {name: partial(getattr(structure, name), classes=CLASSES) for name in LIMITS[:-1]}
    costs["latency_ms"] = lambda kept: table.milliseconds(structure.flops(kept, CLASSES))
    limits = {}
    for name, share in shares.items():
        least, most = costs[name](structure.smallest), costs[name](structure.sizes)
        limit = least * (most / least) ** share
        limits[name] = limit + 1e-9 if name == "latency_ms" else int(np.ceil(limit))
    return Budget(**limits, latency=table if "latency_ms" in shares else None, **others)


def is_maximal(structure: Structure, budget: Budget, kept: Counts) -> bool:
    """Whether no unit of any group could be added."""
    limits = demands(structure, budget, CLASSES)
    for group, size in enumerate(structure.sizes):
        more = [have + (at == group) for at, have in enumerate(kept)]
        if kept[group] < size and all(limit.fits(more) for limit in limits):
            return False
    return True


some_limits = st.dictionaries(st.sampled_from(LIMITS), st.floats(0, 1), min_size=1, max_size=3)


@pytest.mark.parametrize("model", MODELS)
@settings(max_examples=25, deadline=None)
@given(shares=some_limits)
def test_no_limit_is_exceeded_and_no_unit_could_be_added(model, shares):
    structure = structure_of(model)
    budget = budget_at(structure, shares)
    kept = allot(structure, budget, CLASSES)
    assert all(limit.fits(kept) for limit in demands(structure, budget, CLASSES))
    assert is_maximal(structure, budget, kept)


@pytest.mark.parametrize("model", MODELS)
@settings(max_examples=15, deadline=None)
@given(shares=some_limits, multiple=st.sampled_from([2, 4, 8, 16, 24]))
def test_widths_are_multiples_where_groups_are_large_enough_and_the_budget_is(model, shares, multiple):
    structure = structure_of(model)
    budget = budget_at(structure, shares, multiple=multiple)
    kept = allot(structure, budget, CLASSES)
    assert all(limit.fits(kept) for limit in demands(structure, budget, CLASSES))
    for factor in (multiple // 2**k for k in range(8)):
        steps = []
        for group in structure.groups:
            channels = int((group.members[0].unit_of >= 0).sum()) // group.units
            step = factor // np.gcd(factor, channels) if factor else 1
            while step > 1 and 2 * step > group.units:
                step //= 2
            steps.append(max(1, int(step)))
        least = [min(step, size) for step, size in zip(steps, structure.sizes, strict=True)]
        if all(limit.fits(least) for limit in demands(structure, budget, CLASSES)):
            # The largest factor at which anything fits is the one that is kept to.
            sizes = zip(kept, steps, structure.sizes, strict=True)
            assert all(have % step == 0 or have == size for have, step, size in sizes)
            break


@pytest.mark.parametrize("model", ["resnet18", "mobilenetv3_small_100"])
@settings(max_examples=10, deadline=None)
@given(shares=some_limits)
def test_units_are_dealt_as_if_one_by_one(model, shares):
    """In the order of the ratios that they would be rounded to; of a group up to the first too many."""
    structure = structure_of(model)
    budget = budget_at(structure, shares)
    limits = demands(structure, budget, CLASSES)
    turns = [
        ((unit - 0.5) / size, group)
        for group, size in enumerate(structure.sizes)
        for unit in range(2, size + 1)
    ]
    kept, passed_over = list(structure.smallest), set()
    for _, group in sorted(turns):
        if group not in passed_over:
            kept[group] += 1
            if not all(limit.fits(kept) for limit in limits):
                kept[group] -= 1
                passed_over.add(group)
    assert allot(structure, budget, CLASSES) == tuple(kept)


def test_three_limits_of_a_network_of_245_moments_are_allotted_in_100_milliseconds():
    """And in 300 the first time, with what is made once for a structure."""
    found = structure_of("densenet121", residual=True)
    assert len(found.activation_costs) == 245
    budgets = [
        budget_at(found, dict.fromkeys(("parameters", "flops", "activation_bytes"), share))
        for share in (0.3, 0.5, 0.7)
    ]
    first, later = [], []
    for _ in range(3):
        structure = Structure.from_json(found.to_json())
        for number, budget in enumerate(budgets):
            began = time.thread_time()
            allot(structure, budget, CLASSES)
            (later if number else first).append(time.thread_time() - began)
    assert min(first) < 0.3
    assert min(later) < 0.1


def test_the_residual_stream_is_cut_only_where_the_internal_units_alone_are_not_enough():
    structure = structure_of("resnet18", residual=True)
    residual = [group.kind == "residual" for group in structure.groups]
    least_internal = [group.units if group.kind == "residual" else 1 for group in structure.groups]
    enough = structure.parameters(least_internal, CLASSES)
    for limit, whole in ((enough, True), (10 * enough, True), (enough - 1, False), (enough // 4, False)):
        kept = allot(structure, Budget(parameters=limit), CLASSES)
        stream = [k for k, is_residual in zip(kept, residual, strict=True) if is_residual]
        full = [g.units for g in structure.groups if g.kind == "residual"]
        assert (stream == full) == whole
        assert structure.parameters(kept, CLASSES) <= limit


@pytest.mark.parametrize("name", LIMITS)
def test_what_nothing_fits_is_told_with_what_the_smallest_needs(name):
    structure = structure_of("resnet18")
    least = structure.flops(structure.smallest, CLASSES)
    reaching_below = LatencyTable(structure.digest, ((1, 0.5), (2 * least, 4.4445)))
    tiny = {"latency_ms": 1.0, "latency": reaching_below} if name == "latency_ms" else {name: 1}
    with pytest.raises(BudgetError, match=r"smallest sub-network of resnet18 needs .* ask for at least"):
        allot(structure, Budget(**tiny), CLASSES)


@pytest.mark.parametrize(
    ("milliseconds", "says", "enough"),
    [
        # Below the smallest: no budget at all. What it says is enough is rounded up to four digits.
        (1.9, r"1\.9 ms; .* of 1,000 operations, takes 1\.924 ms: ask for at least that", 1.924),
        # Beyond the largest, which was not the whole.
        (28.7, r"28\.7 ms; .* of .* operations, takes 28\.66 ms, .* ask for at most that", 28.66),
    ],
)
def test_a_time_outside_what_was_measured_is_refused_with_what_was(milliseconds, says, enough):
    structure = structure_of("resnet18")
    whole = structure.flops(classes=CLASSES)
    table = LatencyTable(structure.digest, ((1000, 1.92345), (whole - 1, 28.6666)))
    with pytest.raises(BudgetError, match=says) as told:
        allot(structure, Budget(latency_ms=milliseconds, latency=table), CLASSES)
    assert "measure anew with `maskvote-client benchmark`" in str(told.value)
    Budget(latency_ms=enough, latency=table)
    if enough > 20:
        assert allot(structure, Budget(latency_ms=enough, latency=table), CLASSES) != structure.sizes


def test_more_time_than_the_whole_takes_gives_the_whole():
    structure = structure_of("resnet18")
    table = table_of(structure)
    assert allot(structure, Budget(latency_ms=10 * table.most, latency=table), CLASSES) == structure.sizes


def test_headroom_allows_as_much_time_as_was_measured_and_no_more():
    structure = structure_of("resnet18")
    whole = structure.flops(classes=CLASSES)
    table = LatencyTable(structure.digest, ((1000, 2.0), (whole // 2, 10.0)))
    budget = Budget(latency_ms=4.0, latency=table, headroom=4.0)
    assert budget.while_adapting.latency_ms == 10.0
    assert replace(budget, headroom=1.5).while_adapting.latency_ms == 6.0
    allot(structure, budget.while_adapting, CLASSES)


def test_a_table_of_another_structure_or_of_larger_networks_alone_is_refused():
    structure = structure_of("resnet18")
    other = table_of(structure_of("vit_tiny_patch16_224"))
    with pytest.raises(MismatchError, match="measured on sub-networks of structure"):
        allot(structure, Budget(latency_ms=5, latency=other), CLASSES)
    smaller = LatencyTable(structure.digest, ((1, 0.5),))
    with pytest.raises(BudgetError, match="tells nothing of networks as small"):
        allot(structure, Budget(latency_ms=5, latency=smaller), CLASSES)


def test_time_is_interpolated_never_falls_and_is_unknown_beyond_the_table():
    table = LatencyTable("0" * 64, ((100, 2.0), (200, 4.0), (300, 3.0), (400, 5.0)))
    at = table.milliseconds
    assert (at(1), at(100), at(150), at(200)) == (2.0, 2.0, 3.0, 4.0)
    assert (at(250), at(300), at(350), at(400)) == (4.0, 4.0, 4.5, 5.0)
    assert at(401) == float("inf")


@pytest.mark.parametrize(
    ("points", "says"),
    [
        ((), "has 0 points"),
        (((0, 1.0),), "rise from 1"),
        (((5, 1.0), (5, 2.0)), "rise from 1"),
        (((5, 0.0),), "a time of 0.0 ms"),
        (((5, float("nan")),), "a time of nan ms"),
        (((5, float("inf")),), "a time of inf ms"),
        (tuple((k + 1, 1.0) for k in range(257)), "has 257 points"),
    ],
)
def test_a_table_that_is_none_is_refused(points, says):
    with pytest.raises(BudgetError, match=says):
        LatencyTable("0" * 64, points)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"flops": 0}, "0 floating-point operations"),
        ({"weight_bytes": -5}, "-5 bytes of weights"),
        ({"activation_bytes": 2**63}, "bytes of activations"),
        ({"latency_ms": 3.0}, "measure it with `maskvote-client benchmark`"),
        ({"latency_ms": float("nan"), "parameters": 5}, "nan ms"),
        ({"latency_ms": -1.0}, "-1.0 ms"),
        ({"keep_ratio": 0.5, "multiple": 0}, "multiples of 0"),
    ],
)
def test_limits_that_are_no_limits_are_refused(values, says):
    with pytest.raises(BudgetError, match=says):
        Budget(**values)
