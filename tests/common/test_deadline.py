"""A deadline goes by a clock that nobody sets: neither 1970 nor a jump moves it."""

import time

import pytest

from common.deadline import Deadline


@pytest.fixture
def clock(monkeypatch):
    """The monotonic clock, in the hands of a test."""
    seconds = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: seconds[0])
    return seconds


def test_what_is_spent_and_what_is_left_are_the_whole_span(clock):
    deadline = Deadline.after(8)
    clock[0] += 2
    assert (deadline.spent, deadline.left, deadline.share_spent) == (2, 6, 0.25)
    clock[0] += 10
    assert (deadline.left, deadline.share_spent) == (-4, 1.0)


def test_a_part_is_a_share_of_what_is_left_from_now_on(clock):
    deadline = Deadline.after(8)
    clock[0] += 4
    part = deadline.part(0.5)
    assert (part.spent, part.left) == (0, 2)


def test_a_span_of_no_time_is_over_at_once(clock):
    assert Deadline.after(0).share_spent == 1.0
    assert Deadline.after(-1).share_spent == 1.0


@pytest.mark.parametrize("day", [0.0, 4e9])
def test_the_clock_on_the_wall_does_not_matter(monkeypatch, day):
    monkeypatch.setattr(time, "time", lambda: day)
    deadline = Deadline.after(60)
    monkeypatch.setattr(time, "time", lambda: day + 1e6)
    assert 59 < deadline.left <= 60
