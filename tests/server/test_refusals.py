"""Refusals: a host's unknown tokens are looked up only so often; those accepted before always are."""

from contextlib import ExitStack

import pytest

from common.errors import LibraryError, TokenError, UnavailableError
from server import refusals
from server.refusals import PER_MINUTE, Refusals, host_of

HOST = "192.0.2.1"


@pytest.fixture
def counted(clock) -> Refusals:
    return Refusals(clock)


def accept(counted: Refusals, token: str | None, host: str = HOST) -> None:
    with counted.counted(host, token):
        pass


def refuse(counted: Refusals, token: str | bytes | None, host: str = HOST) -> None:
    with pytest.raises(TokenError), counted.counted(host, token):
        raise TokenError("nobody has it")


def guess(counted: Refusals, host: str = HOST) -> None:
    """Have as many unknown tokens refused as one host may come with at once."""
    for number in range(PER_MINUTE):
        refuse(counted, f"guess {number}", host)


def test_after_so_many_refusals_no_token_of_the_host_is_looked_up_until_its_time(counted, clock):
    guess(counted)
    with pytest.raises(UnavailableError, match="more than 60 tokens a minute") as told:
        accept(counted, "right, and never seen")
    assert told.value.retry_seconds == pytest.approx(60 / PER_MINUTE)
    clock.now += told.value.retry_seconds
    accept(counted, "right, and never seen")


@pytest.mark.parametrize("token", [None, "", b"\xff"])
def test_no_token_and_one_that_is_none_count_as_any_other(counted, token):
    for _ in range(PER_MINUTE):
        refuse(counted, token)
    with pytest.raises(UnavailableError):
        accept(counted, token)


def test_one_hosts_guesses_are_not_anothers(counted):
    guess(counted)
    accept(counted, "right", host="192.0.2.2")


def test_a_token_that_was_accepted_is_looked_up_whatever_others_behind_its_address_do(counted):
    accept(counted, "right")
    guess(counted)
    for _ in range(2 * PER_MINUTE):
        accept(counted, "right")
    refuse(counted, "right")  # revoked by now: one as any other
    with pytest.raises(UnavailableError):
        accept(counted, "right")


def test_accepted_tokens_and_a_library_that_is_busy_cost_a_host_nothing(counted):
    for number in range(3 * PER_MINUTE):
        accept(counted, f"right {number}")
        with pytest.raises(LibraryError), counted.counted(HOST, f"unknown {number}"):
            raise LibraryError("locked")
    guess(counted)


def test_guesses_that_are_looked_up_at_one_time_count_as_much(counted):
    with ExitStack() as running:
        for number in range(PER_MINUTE):
            running.enter_context(counted.counted(HOST, f"guess {number}"))
        with pytest.raises(UnavailableError):
            accept(counted, "one more")
    accept(counted, "one more")


def test_whoever_hangs_up_while_their_token_is_looked_up_has_paid_for_it(counted):
    for number in range(PER_MINUTE):
        with pytest.raises(KeyboardInterrupt), counted.counted(HOST, f"guess {number}"):
            raise KeyboardInterrupt
    with pytest.raises(UnavailableError):
        accept(counted, "one more")


def test_only_so_many_hosts_and_tokens_are_remembered(counted, monkeypatch):
    monkeypatch.setattr(refusals, "MAX_REMEMBERED", 10)
    for number in range(100):
        accept(counted, f"right {number}", host=f"host {number}")
    assert len(counted._hosts) == len(counted._accepted) == 10


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:192.0.2.1:50100", "192.0.2.1"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:50100", "2001:db8:1:2::/64"),
        ("ipv6:%5B::ffff:192.0.2.1%5D:50100", "192.0.2.1"),
        ("ipv6:[fe80::1%25eth0]:50100", "fe80::/64"),
        ("unix:/run/maskvote:0", "unix:/run/maskvote"),
    ],
)
def test_a_host_is_an_address_without_a_port_and_of_ipv6_what_one_line_gets(peer, host):
    assert host_of(peer) == host
