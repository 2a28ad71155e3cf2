"""Overlap of masks against relatedness, with masks worked out by hand."""

import base64
import json
from pathlib import Path

import numpy as np
import pytest

from common.errors import InputError
from simulations.library_records import LibraryMasks, read_library
from simulations.overlap import overlaps
from simulations.tasks import TaskChoice

GROUPS = [["conv1.weight:0", 4], ["conv2.weight:0", 5]]
TASKS = {"a": (0, 1), "b": (0, 1), "c": (2, 3), "d": (2, 3)}
MASKS = {"a": "1100 11000", "b": "1100 10010", "c": "0011 10100", "d": "0110 10001"}


def write(directory: Path, masks: dict[str, str]) -> Path:
    (directory / "structure.json").write_text(json.dumps({"groups": GROUPS}))
    lines = []
    for name, bits in masks.items():
        kept = np.array([bit == "1" for bit in bits.replace(" ", "")])
        mask = base64.b64encode(np.packbits(kept).tobytes()).decode()
        task = {"name": name, "classes": TASKS[name], "domain": "plain", "mask": mask}
        lines.append(json.dumps({**task, "before": 0.4, "after": 0.5}) + "\n")
    (directory / "library.jsonl").write_text("".join(lines))
    return directory


def test_overlap_is_intersection_over_union_per_group_and_by_relatedness(tmp_path):
    found = overlaps(read_library(write(tmp_path, MASKS)))
    first, second, both = found.groups
    # Pairs ab ac ad bc bd cd: conv1 1 0 1/3 0 1/3 1/3, conv2 1/3 six times.
    assert first.mean == pytest.approx((1 + 1 / 3 + 1 / 3 + 1 / 3) / 6)
    assert second.mean == pytest.approx(1 / 3)
    assert both.name == "all"
    assert both.mean == pytest.approx((first.mean + second.mean) / 2)
    assert found.pairs == (4, 0, 0, 2)
    assert first.binned == (pytest.approx(1 / 6), None, None, pytest.approx(2 / 3))
    assert first.chance == pytest.approx(2 / 6)  # two of four against two of four


def test_correlation_is_pearsons_and_none_where_nothing_varies(tmp_path):
    first, second, both = overlaps(read_library(write(tmp_path, MASKS))).groups
    expected = np.corrcoef([1, 0, 0, 0, 0, 1], [1, 0, 1 / 3, 0, 1 / 3, 1 / 3])[0, 1]
    assert first.correlation == pytest.approx(expected)
    assert (second.correlation, second.p) == (None, None)
    assert both.correlation == pytest.approx(expected)


def test_mantel_finds_a_planted_relation_and_none_in_noise():
    lot = np.random.default_rng(0)
    classes = [tuple(sorted(lot.choice(20, 5, replace=False).tolist())) for _ in range(24)]
    planted = np.zeros((24, 20), dtype=bool)
    for row, own in zip(planted, classes, strict=True):
        row[list(own)] = True
    noise = np.array([lot.permutation(20) < 5 for _ in range(24)])
    tasks = tuple(TaskChoice(str(k), own) for k, own in enumerate(classes))
    groups = (("planted", 20), ("noise", 20))
    library = LibraryMasks(tasks, groups, np.hstack([planted, noise]), np.zeros((24, 2)))
    first, second, _ = overlaps(library, permutations=199).groups
    assert first.correlation == pytest.approx(1)
    assert first.p == pytest.approx(2 / 200)  # the least of 199 permutations, times two groups
    assert second.p > 0.05


def test_masks_are_read_as_they_were_packed(tmp_path):
    library = read_library(write(tmp_path, MASKS))
    assert ["".join("01"[bit] for bit in row.astype(int)) for row in library.kept] == [
        mask.replace(" ", "") for mask in MASKS.values()
    ]
    assert library.groups == (("conv1.weight:0", 4), ("conv2.weight:0", 5))
    assert library.accuracies.tolist() == [[0.4, 0.5]] * 4


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("structure.json", "{", "structure.json is damaged"),
        ("structure.json", '{"groups": [["conv", 90]]}', "mask of another size for a; 90 units"),
        ("library.jsonl", '{"name": "a"}\n', "library.jsonl is damaged"),
        ("library.jsonl", "[]\n", "library.jsonl is damaged"),
        ("library.jsonl", "", "a library of 0 tasks"),
    ],
)
def test_what_is_damaged_is_told_in_a_sentence(file, content, says, tmp_path):
    (write(tmp_path, MASKS) / file).write_text(content)
    with pytest.raises(InputError, match=says):
        overlaps(read_library(tmp_path))
