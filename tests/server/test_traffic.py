"""Traffic: a caller may start so many calls, and run so many at once; one too many is told to wait."""

from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standing_clock import Clock

from common.errors import InputError, UnavailableError
from common.exchange import Limits
from server import traffic
from server.traffic import Traffic

LIMITS = Limits(calls_per_minute=60, burst=3, concurrent_calls=2)


@pytest.fixture
def counted(clock) -> Traffic:
    return Traffic(LIMITS, clock)


def call(counted: Traffic, caller: str = "pi") -> None:
    with counted.admitted(caller):
        pass


def test_after_the_burst_a_caller_waits_as_long_as_it_is_told(counted, clock):
    for _ in range(3):
        call(counted)
    with pytest.raises(UnavailableError, match="more than 60 calls a minute") as refused:
        call(counted)
    assert refused.value.retry_seconds == pytest.approx(1.0)
    clock.now += 0.6
    with pytest.raises(UnavailableError) as refused:
        call(counted)
    assert refused.value.retry_seconds == pytest.approx(0.4)
    clock.now += refused.value.retry_seconds
    call(counted)


def test_one_callers_haste_is_not_anothers(counted):
    for _ in range(3):
        call(counted, "hasty")
    with pytest.raises(UnavailableError):
        call(counted, "hasty")
    call(counted, "patient")


def test_calls_at_one_time_are_limited_and_an_ended_one_makes_room(counted):
    with ExitStack() as running:
        running.enter_context(counted.admitted("pi"))
        with counted.admitted("pi"), pytest.raises(UnavailableError, match="2 calls of this caller"):
            call(counted)
        call(counted)
    assert counted.running == 0


def test_a_caller_that_sent_too_much_waits_until_what_went_beyond_is_made_up_for(clock):
    counted = Traffic(Limits(calls_per_minute=6000, burst=100, bytes_per_minute=6000), clock)
    with counted.admitted("pi") as charge:
        charge(6000)
    with counted.admitted("pi") as charge:
        charge(50)  # it is there: it is taken, and the next call pays for it
    with pytest.raises(UnavailableError, match="more than 6,000 bytes a minute were sent") as refused:
        call(counted)
    assert refused.value.retry_seconds == pytest.approx(0.5)
    call(counted, "another")
    clock.now += 0.5
    call(counted)
    clock.now += 3600
    with counted.admitted("pi") as charge:
        charge(6100)  # no more than a minute's bytes are ever saved up
    with pytest.raises(UnavailableError) as refused:
        call(counted)
    assert refused.value.retry_seconds == pytest.approx(1.0)


def test_a_call_that_fails_ends_too(counted):
    with pytest.raises(InputError), counted.admitted("pi"):
        raise InputError("no")
    assert counted.running == 0


def test_all_callers_together_are_limited(clock, monkeypatch):
    monkeypatch.setattr(traffic, "MAX_CALLS", 5)
    counted = Traffic(LIMITS, clock)
    with ExitStack() as running:
        for number in range(5):
            running.enter_context(counted.admitted(f"pi-{number}"))
        with pytest.raises(UnavailableError, match="answers 5 calls already") as refused:
            call(counted, "another")
    assert refused.value.retry_seconds == 5
    call(counted, "another")


def test_only_so_many_callers_are_remembered(clock, monkeypatch):
    monkeypatch.setattr(traffic, "MAX_CALLERS", 10)
    counted = Traffic(LIMITS, clock)
    for number in range(100):
        call(counted, f"pi-{number}")
    assert len(counted._accounts) == 10


@given(pauses=st.lists(st.floats(0, 5), min_size=1, max_size=60))
def test_whatever_the_pauses_no_caller_exceeds_burst_and_rate(pauses):
    clock = Clock()
    counted, started, began = Traffic(LIMITS, clock), 0, clock.now
    for pause in pauses:
        clock.now += pause
        try:
            call(counted)
            started += 1
        except UnavailableError:
            pass
        assert started <= LIMITS.burst + (clock.now - began) * LIMITS.calls_per_minute / 60 + 1e-6
