import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from toys import Mlp, found_in, structure_of

from common.errors import MaskError, MismatchError
from common.mask import Mask

TWO = structure_of((3, 5))


@st.composite
def masks(draw, count: int = 1):
    """So many masks of one structure of up to 5 groups of up to 11 units."""
    structure = structure_of(draw(st.lists(st.integers(1, 11), min_size=1, max_size=5)))
    drawn = []
    for _ in range(count):
        rows = {}
        for group in structure.groups:
            row = np.array(draw(st.lists(st.booleans(), min_size=group.units, max_size=group.units)))
            row[draw(st.integers(0, group.units - 1))] = True
            rows[group.name] = row
        drawn.append(Mask.of(structure, rows))
    return drawn[0] if count == 1 else drawn


def rows(*texts: str) -> Mask:
    """The mask of `TWO` whose rows are written as ones and zeros."""
    return Mask.of(TWO, {f"g{k}": np.array([c == "1" for c in text]) for k, text in enumerate(texts)})


@given(mask=masks())
def test_unpack_of_pack_is_the_mask_in_one_bit_a_unit(mask):
    packed = mask.pack()
    assert len(packed) == -(-mask.structure.units // 8)
    assert Mask.unpack(mask.structure, packed) == mask
    assert hash(Mask.unpack(mask.structure, packed)) == hash(mask)


def test_a_packed_mask_is_its_groups_in_order_first_unit_in_the_highest_bit():
    assert rows("101", "10001").pack() == bytes([0b101_10001])


@given(pair=masks(count=2))
def test_overlap_is_symmetric_in_the_unit_interval_and_one_with_itself(pair):
    one, other = pair
    assert one.overlap(other) == other.overlap(one)
    assert all(0 <= value <= 1 for value in one.overlap(other).values())
    assert set(one.overlap(one).values()) == {1.0}
    assert (one == other) == (set(one.overlap(other).values()) == {1.0})


def test_overlap_is_intersection_over_union_group_by_group():
    assert rows("110", "11100").overlap(rows("011", "11100")) == {"g0": pytest.approx(1 / 3), "g1": 1.0}


@given(pair=masks(count=2))
def test_a_mask_is_within_another_if_no_unit_is_its_alone(pair):
    one, other = pair
    both = one.kept | other.kept
    assert one.within(Mask(one.structure, both))
    assert one.within(other) == bool((both == other.kept).all())


@given(data=st.data())
def test_keep_top_keeps_exactly_the_counts_and_no_worse_unit_over_a_better_one(data):
    structure = structure_of(data.draw(st.lists(st.integers(1, 11), min_size=1, max_size=4)))
    number = st.floats(-10, 10) | st.just(-np.inf)
    scores, ties, counts = {}, {}, []
    for group in structure.groups:
        row = st.lists(number, min_size=group.units, max_size=group.units).map(np.array)
        scores[group.name], ties[group.name] = data.draw(row), data.draw(row)
        counts.append(data.draw(st.integers(1, group.units)))
    mask = Mask.keep_top(structure, scores, counts, ties)
    assert mask.counts == tuple(counts)
    for name, kept in mask.items():
        ranks = list(zip(scores[name], ties[name], strict=True))
        assert min(r for r, k in zip(ranks, kept, strict=True) if k) >= max(
            (r for r, k in zip(ranks, kept, strict=True) if not k), default=(-np.inf, -np.inf)
        )


def test_equal_scores_go_by_the_tie_break_and_then_by_index():
    scores = {"g0": np.array([1.0, 1.0, 1.0]), "g1": np.array([0.0, 2.0, 2.0, 2.0, 0.0])}
    second = {"g0": np.array([0.0, 5.0, 0.0]), "g1": np.array([9.0, 0.0, 0.0, 1.0, 9.0])}
    assert Mask.keep_top(TWO, scores, (1, 2), second) == rows("010", "01010")
    assert Mask.keep_top(TWO, scores, (1, 2)) == rows("100", "01100")


def test_scores_of_minus_infinity_come_last_and_can_still_fill_the_count():
    scores = {"g0": np.array([-np.inf, 0.0, -np.inf]), "g1": np.full(5, -np.inf)}
    assert Mask.keep_top(TWO, scores, (2, 1)) == rows("110", "10000")


@pytest.mark.parametrize(
    ("g0", "counts", "message"),
    [
        ([0.0, np.nan, 0.0], (1, 1), r"g0 are \(3,\) with 1 NaN"),
        ([0.0, 0.0], (1, 1), r"g0 are \(2,\)"),
        ([0.0, 0.0, 0.0], (0, 1), r"g0 has 1\.\.3 units to keep, not 0"),
        ([0.0, 0.0, 0.0], (3, 6), r"g1 has 1\.\.5 units to keep, not 6"),
    ],
)
def test_scores_and_counts_that_mean_nothing_are_refused(g0, counts, message):
    with pytest.raises(MaskError, match=message):
        Mask.keep_top(TWO, {"g0": np.array(g0), "g1": np.zeros(5)}, counts)


def test_a_tie_break_with_nan_or_of_a_wrong_length_is_refused():
    scores = {"g0": np.zeros(3), "g1": np.zeros(5)}
    for bad in (np.array([0.0, np.nan, 0.0]), np.zeros(2)):
        with pytest.raises(MaskError, match="g0"):
            Mask.keep_top(TWO, scores, (1, 1), scores | {"g0": bad})


@pytest.mark.parametrize("missing", ["scores", "counts"])
def test_scores_or_counts_that_lack_a_group_are_refused(missing):
    scores = {"g0": np.zeros(3), "g1": np.zeros(5)}
    counts = [1, 1]
    if missing == "scores":
        del scores["g1"]
    else:
        counts.pop()
    with pytest.raises(MaskError):
        Mask.keep_top(TWO, scores, counts)


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (np.ones(7, dtype=bool), r"bool \(7,\); the structure needs bool \(8,\)"),
        (np.ones(8, dtype=np.int64), r"int64 \(8,\)"),
        (np.ones((1, 8), dtype=bool), r"\(1, 8\)"),
        (np.array([0, 0, 0, 1, 1, 1, 1, 1], dtype=bool), "keeps no unit of g0"),
        (np.zeros(8, dtype=bool), "keeps no unit of g0, g1"),
    ],
)
def test_an_invalid_mask_cannot_exist(kept, message):
    with pytest.raises(MaskError, match=message):
        Mask(TWO, kept)


def test_every_group_that_is_missing_unknown_or_of_a_wrong_length_is_named_at_once():
    wrong = {"g0": np.ones(4, dtype=bool), "extra": np.ones(1, dtype=bool)}
    with pytest.raises(
        MaskError, match=r"g1 is missing; extra is unknown; g0 is bool \(4,\), not bool \(3,\)"
    ):
        Mask.of(TWO, wrong)


def test_a_mask_cannot_be_changed_neither_itself_nor_through_what_it_was_made_of():
    source = np.ones(8, dtype=bool)
    mask = Mask(TWO, source)
    source[0] = False
    assert mask.kept.all()
    with pytest.raises(ValueError, match="read-only"):
        mask.kept[0] = False
    with pytest.raises(ValueError, match="read-only"):
        mask["g1"][0] = False


@given(mask=masks(), data=st.data())
def test_a_packed_mask_of_another_length_is_refused(mask, data):
    packed = data.draw(st.binary(max_size=10))
    assume(len(packed) != len(mask.pack()))
    with pytest.raises(MaskError, match="packed mask of"):
        Mask.unpack(mask.structure, packed)


def test_a_packed_mask_with_padding_bits_set_is_refused():
    small = structure_of((3,))
    assert Mask.unpack(small, bytes([0b1010_0000])).counts == (2,)
    with pytest.raises(MaskError, match="damaged"):
        Mask.unpack(small, bytes([0b1010_0001]))


def test_masks_of_two_structures_are_not_compared():
    with pytest.raises(MismatchError, match="two structures"):
        Mask.full(TWO).overlap(Mask.full(structure_of((8,))))
    with pytest.raises(MismatchError, match="two structures"):
        Mask.full(TWO).within(Mask.full(structure_of((5, 3))))
    assert Mask.full(TWO) != Mask.full(structure_of((8,)))


def test_a_mask_is_a_mapping_from_group_to_row_with_counts_and_density():
    mask = rows("101", "10000")
    assert list(mask) == ["g0", "g1"]
    assert len(mask) == 2
    assert mask["g0"].tolist() == [True, False, True]
    assert mask.counts == (2, 1)
    assert mask.density == 3 / 8
    with pytest.raises(KeyError):
        mask["g2"]


def test_where_nothing_can_be_cut_the_only_mask_is_empty_and_keeps_everything():
    mask = Mask.full(structure_of(()))
    assert mask.density == 1.0
    assert mask.pack() == b""
    assert Mask.unpack(mask.structure, b"") == mask


def test_what_a_mask_costs_is_what_its_structure_says():
    structure = found_in(Mlp)
    mask = Mask(structure, np.arange(12) % 3 == 0)
    assert mask.counts == (3, 1)
    assert mask.parameters == structure.parameters((3, 1)) == 12 * 3 + 3 + 3 * 1 + 1 * 3 + 3
    assert mask.flops == structure.flops((3, 1)) == 2 * (12 * 3 + 3 * 1 + 1 * 3)
