"""How long and how often a device tries, by a clock of the test's own."""

import random

import pytest

from client import patience
from client.patience import LONGEST_SECONDS, SHORTEST_SECONDS, Patience
from common.durations import in_words
from common.errors import LibraryError, MaskvoteError, UnavailableError

AWAY = UnavailableError("the server is away")


class Clock:
    """Passes when somebody sleeps; `pauses` are how long they slept."""

    def __init__(self) -> None:
        self.now, self.pauses = 1000.0, []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(patience, "time", clock)
    return clock


def exhaust(trying: Patience, error: MaskvoteError) -> None:
    """Fail, always with this error, until it is raised."""
    while True:
        trying.wait(error)


@pytest.mark.parametrize("seed", range(20))
def test_an_outage_is_tried_through_to_its_end_in_pauses_of_1_to_30_seconds(clock, monkeypatch, seed):
    monkeypatch.setattr(patience, "random", random.Random(seed))
    trying = Patience(3600)
    with pytest.raises(UnavailableError, match="the server is away; tried for 1 hour, so try again"):
        exhaust(trying, AWAY)
    assert sum(clock.pauses) == pytest.approx(3600)
    *pauses, last = clock.pauses
    assert all(SHORTEST_SECONDS <= pause <= LONGEST_SECONDS for pause in pauses)
    assert last <= LONGEST_SECONDS
    assert pauses[0] == SHORTEST_SECONDS
    assert len(pauses) < 400
    assert len({round(pause, 6) for pause in pauses}) > 20


def test_success_renews_it(clock):
    trying = Patience(100)
    for _ in range(50):
        trying.wait(AWAY)
        clock.sleep(90)
        trying.renew()
    assert trying.wait(AWAY) is None


def test_a_server_is_not_called_before_it_said(clock):
    trying = Patience(100)
    for seconds in (0.001, 20, 50):
        trying.wait(UnavailableError("too many calls", retry_seconds=seconds))
        assert seconds <= clock.pauses[-1] <= 1.2 * seconds
    with pytest.raises(UnavailableError, match="too many calls"):
        trying.wait(UnavailableError("too many calls", retry_seconds=60))


def test_without_patience_there_is_one_attempt_and_the_error_as_it_was(clock):
    told = []
    with pytest.raises(UnavailableError) as refused:
        Patience(0, told.append).wait(AWAY)
    assert refused.value is AWAY
    assert (clock.pauses, told) == ([], [])


def test_what_was_tried_for_keeps_its_kind(clock):
    with pytest.raises(LibraryError, match="the disk is full; tried for 10 seconds"):
        exhaust(Patience(10), LibraryError("the disk is full"))


def test_the_first_failure_of_an_outage_is_told_and_no_other(clock):
    told = []
    trying = Patience(7200, told.append)
    for _ in range(2):
        for _ in range(3):
            trying.wait(AWAY)
        trying.renew()
    assert told == ["the server is away; trying on for 2 hours"] * 2


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 seconds"), (59.4, "59 seconds"), (60, "1 minute"), (7199, "1 hour"), (90_000, "1 day"),
     (56.9 * 365.25 * 86_400, "56 years")],
)  # fmt: skip
def test_durations_are_told_in_their_largest_unit(seconds, words):
    assert in_words(seconds) == words
