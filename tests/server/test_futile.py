"""Futile attempts: what came to nothing is known again, unless there is more time or another backbone."""

from dataclasses import replace

import pytest

from server.healing.futile import Attempt, Futile

BACKBONE = (1, 2, 3)
ATTEMPT = Attempt(b"mask", 10.0, BACKBONE)


@pytest.fixture
def futile() -> Futile:
    futile = Futile()
    futile.add(ATTEMPT)
    return futile


@pytest.mark.parametrize(
    ("changes", "covered"),
    [
        ({}, True),
        ({"seconds": 1.0}, True),
        ({"seconds": 10.5}, True),  # as long, but for a moment
        ({"seconds": 20.0}, False),
        ({"backbone": (1, 2, 4)}, False),
        ({"backbone": None}, False),
        ({"mask": b"another"}, False),
    ],
)
def test_what_is_of_more_time_another_backbone_or_another_mask_is_to_be_tried(futile, changes, covered):
    assert futile.covers(replace(ATTEMPT, **changes)) == covered


def test_the_last_attempt_for_a_mask_counts(futile):
    futile.add(replace(ATTEMPT, seconds=20.0, backbone=None))
    assert futile.covers(replace(ATTEMPT, seconds=20.0, backbone=None))
    assert not futile.covers(ATTEMPT)


def test_only_so_many_are_remembered_those_of_the_longest_ago_go_first():
    futile = Futile(most=2)
    first, second, third = (replace(ATTEMPT, mask=mask) for mask in (b"1", b"2", b"3"))
    for attempt in (first, second, first, third):
        futile.add(attempt)
    assert [futile.covers(attempt) for attempt in (first, second, third)] == [True, False, True]
