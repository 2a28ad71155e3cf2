"""An operator who is elsewhere sees and does what one does who has the library's file."""

import shutil
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc import StatusCode
from grpc_server import PLENTY, running_server
from operated import WITH_TOKENS, entry_of, operated, served
from random_tasks import random_mask, random_signature

from common.backbone import weights_digest
from common.budget import Budget
from common.errors import (
    AccessError,
    InputError,
    LibraryError,
    MismatchError,
    TokenError,
    UnavailableError,
)
from common.exchange import Offer, TaskDescription
from common.grpc_channel import Connection
from common.grpc_codec import ERROR_KIND, full_name
from common.proto_codec import MAX_MESSAGE_BYTES
from server import tokens
from server.coordinator import Coordinator
from server.entries import Entry, Operations
from server.library import Library
from server.operator_codec import OPERATORS, encode_entry
from server.remote_library import RemoteLibrary


def entries(offer: Offer, count: int, **changes: object) -> Iterator[Entry]:
    return (entry_of(offer, number, **changes) for number in range(count))


@pytest.fixture(scope="module")
def stocked_path(offer, weights, tmp_path_factory) -> Path:
    """A closed library of twelve entries, two of them removed."""
    path = tmp_path_factory.mktemp("stocked") / "stocked.db"
    with Library.create(path, offer, weights_digest(weights)) as library:
        library.take_in(entries(offer, 12))
        for number in (3, 7):
            library.remove(entry_of(offer, number).entry, "boss", f"reason {number}")
    return path


@pytest.fixture
def stocked(stocked_path, tmp_path) -> Path:
    return Path(shutil.copy(stocked_path, tmp_path / "stocked.db"))


@pytest.fixture
def empty(offer, weights, tmp_path) -> Path:
    path = tmp_path / "empty.db"
    Library.create(path, offer, weights_digest(weights)).close()
    return path


def all_of(operations: Operations) -> dict:
    """Everything that can be seen of a library."""
    facts = list(operations.facts())
    return {
        "facts": facts,
        "entries": [operations.entry(fact.entry) for fact in facts],
        "one by one": [operations.facts_of(fact.entry) for fact in facts],
        "exported": list(operations.export()),
        "structure": operations.structure.to_json(),
        "statistics": replace(operations.statistics(), file_bytes=0),
    }


def test_what_is_seen_from_elsewhere_is_what_the_file_holds(stocked, weights):
    with operated(stocked, weights) as remote, Library.open(stocked) as local:
        seen = all_of(remote)
        assert seen == all_of(local)
    assert [fact.position for fact in seen["facts"]] == [*range(1, 13)]
    assert [fact.position for fact in seen["facts"] if fact.removed] == [4, 8]
    assert len(seen["exported"]) == 10
    assert (seen["statistics"].voting, seen["statistics"].removed) == (10, 2)


def test_an_entry_is_removed_and_restored_in_the_name_of_the_token(stocked, offer, weights):
    name = entry_of(offer, 5).entry
    with operated(stocked, weights) as remote, Library.open(stocked) as local:
        for _ in range(2):  # the second time changes nothing
            told = remote.remove(name, "whoever this says it is", "its images are of fish")
            assert told == local.facts_of(name)
            assert (told.removed.by, told.removed.reason) == ("the-operator", "its images are of fish")
        assert remote.restore(name, "", "they are of birds") == local.facts_of(name)
        assert local.facts_of(name).removed is None


def test_what_is_removed_votes_no_more_from_the_next_request_on_and_restored_it_does(
    stocked, offer, weights
):
    def asked(number: int) -> set[str]:
        signature = random_signature(offer.probe, np.random.default_rng(number))
        task = TaskDescription(f"{number:032x}", signature, Budget(keep_ratio=0.5))
        return {neighbour.entry for neighbour in coordinator.choose(task).neighbours}

    with Library.open(stocked) as library:
        coordinator = Coordinator(library, weights)
        with operated(stocked, weights) as remote:
            one = entry_of(offer, 5).entry
            assert one in asked(100)
            remote.remove(one, "", "fish")
            assert one not in asked(101)
            assert len(asked(102)) == 9
            remote.restore(one, "", "birds")
            assert one in asked(103)


def test_what_one_library_exports_another_takes_in_once(stocked, empty, weights):
    with operated(stocked, weights) as source, Library.open(stocked) as stock:
        with operated(empty, weights) as remote:
            assert remote.take_in(source.export()) == (10, 0)
            assert remote.take_in(source.export()) == (0, 10)
            assert remote.take_in(iter(())) == (0, 0)
        with Library.open(empty) as library:
            taken = list(library.export())
        expected = [replace(entry, position=place) for place, entry in enumerate(stock.export(), 1)]
    assert taken == expected


def of_another_structure(offer: Offer) -> Entry:
    other = offer.structure.without({offer.structure.groups[0].name: "a test"})
    return entry_of(offer, 3, mask=random_mask(other, np.random.default_rng(3)))


def of_another_probe(offer: Offer) -> Entry:
    entry = entry_of(offer, 3)
    return replace(entry, signature=replace(entry.signature, probe="12" * 32))


def of_the_same_name(offer: Offer) -> Entry:
    return entry_of(offer, 0, mask=random_mask(offer.structure, np.random.default_rng(99)))


WRONG = {
    "another mask under its name": (of_the_same_name, InputError, "differs"),
    "another structure": (of_another_structure, MismatchError, "is of structure"),
    "another probe": (of_another_probe, MismatchError, "probe 121212121212"),
    "an accuracy above one": (lambda offer: entry_of(offer, 3, accuracy_after=1.5), InputError, "1.5"),
    "a name of its own making": (lambda offer: entry_of(offer, 3, entry="robin"), InputError, "robin"),
}


@pytest.mark.parametrize(("wrong", "error", "says"), WRONG.values(), ids=WRONG.keys())
@pytest.mark.parametrize("elsewhere", [True, False])
def test_an_entry_that_does_not_belong_ends_an_import_and_those_before_it_stay(
    empty, offer, weights, elsewhere, wrong, error, says
):
    coming = [*entries(offer, 3), wrong(offer), entry_of(offer, 4)]
    if elsewhere:
        with operated(empty, weights) as remote, pytest.raises(error, match=says):
            remote.take_in(coming)
    else:
        with Library.open(empty) as library, pytest.raises(error, match=says):
            library.take_in(coming)
    with Library.open(empty) as library:
        assert list(library.export()) == [*entries(offer, 3)]


def test_what_fails_where_the_entries_come_from_is_raised_there_and_those_before_stay(
    empty, offer, weights
):
    def failing() -> Iterator[Entry]:
        yield from entries(offer, 3)
        raise KeyError("a fault of this program")

    with operated(empty, weights) as remote, pytest.raises(KeyError, match="of this program"):
        remote.take_in(failing())
    with Library.open(empty) as library:
        assert len(library) == 3


@pytest.mark.parametrize("name", ["", "5eed", "0" * 32, "x" * 200])
def test_an_entry_that_is_not_there_is_told_alike(stocked, weights, name):
    with operated(stocked, weights) as remote, Library.open(stocked) as local:
        for operations in (remote, local):
            for ask in (
                operations.entry,
                operations.facts_of,
                lambda entry, o=operations: o.remove(entry, "boss", "fish"),
                lambda entry, o=operations: o.restore(entry, "boss", "fish"),
            ):
                with pytest.raises(
                    InputError, match=rf"there is no entry '{name[:40]}'; list the entries"
                ):
                    ask(name)


@pytest.mark.parametrize("reason", ["", "x" * 501, "two\nlines"])
def test_a_removal_needs_a_reason_of_one_line(stocked, offer, weights, reason):
    name = entry_of(offer, 0).entry
    with operated(stocked, weights) as remote, Library.open(stocked) as local:
        for operations in (remote, local):
            for decide in (operations.remove, operations.restore):
                with pytest.raises(InputError, match=rf"the reason has {len(reason)} characters"):
                    decide(name, "boss", reason)
        assert local.facts_of(name).removed is None


# Who may


def everything(remote: RemoteLibrary) -> list:
    return [
        lambda: remote.structure,
        lambda: next(remote.facts()),
        lambda: remote._ask("ShowEntry", b""),
        lambda: remote.remove("5eed", "", "fish"),
        lambda: remote.restore("5eed", "", "fish"),
        lambda: next(remote.export()),
        lambda: remote.take_in([]),
        lambda: remote.statistics(),
    ]


def test_a_devices_token_is_refused_for_all_that_operators_do(stocked, weights):
    with operated(stocked, weights, role="device") as remote:
        calls = everything(remote)
        assert len(calls) == len(OPERATORS.methods)
        for call in calls:
            with pytest.raises(AccessError, match="'the-device' has the role device") as refused:
                call()
            assert refused.value.exit_status == 5
            assert not isinstance(refused.value, TokenError)


def test_without_a_token_nobody_operates_even_where_devices_need_none(stocked, weights):
    anybody = replace(WITH_TOKENS, anonymous=True)
    with Library.open(stocked) as library, running_server(library, weights, anybody) as port:
        address = f"127.0.0.1:{port}"
        with RemoteLibrary(Connection(address)) as remote:
            for call in everything(remote):
                with pytest.raises(AccessError):
                    call()
        with RemoteLibrary(Connection(address, "mv_" + "A" * 43)) as remote:
            for call in everything(remote):
                with pytest.raises(TokenError, match="knows no such token"):
                    call()


def test_a_revoked_operator_is_out_at_once(stocked, weights):
    with operated(stocked, weights) as remote:
        assert remote.statistics().voting == 10
        with Library.open(stocked) as library:
            tokens.revoke(library, "the-operator")
        with pytest.raises(TokenError, match="revoked"):
            remote.statistics()


# What goes wrong on the way


@pytest.mark.parametrize(
    "garbage", [b"", b"\xff" * 20, b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x03abc" * 100]
)
def test_garbage_gets_a_status_and_a_sentence_and_stores_nothing(stocked, weights, garbage):
    with served(stocked, weights) as connection, connection.open() as channel:
        for name in ("ShowEntry", "RemoveEntry", "RestoreEntry", "ImportEntries"):
            call = channel.stream_unary(full_name(OPERATORS.methods_by_name[name]))
            with pytest.raises(grpc.RpcError) as refused:
                call(iter([garbage]), metadata=connection.metadata, timeout=20)
            assert refused.value.code() is StatusCode.INVALID_ARGUMENT
            assert dict(refused.value.trailing_metadata())[ERROR_KIND] == "InputError"
            assert refused.value.details()
        with Library.open(stocked) as library:
            assert len(library) == 12


def test_an_entry_that_is_too_large_is_refused_before_it_is_read(empty, weights):
    with served(empty, weights) as connection, connection.open() as channel:
        call = channel.stream_unary(full_name(OPERATORS.methods_by_name["ImportEntries"]))
        with pytest.raises(grpc.RpcError) as refused:
            call(iter([bytes(MAX_MESSAGE_BYTES + 1)]), metadata=connection.metadata, timeout=20)
        assert refused.value.code() is StatusCode.RESOURCE_EXHAUSTED


def test_a_server_that_is_not_there_is_told_and_what_to_check():
    with (
        RemoteLibrary(Connection("127.0.0.1:1", "mv_" + "A" * 43)) as remote,
        pytest.raises(
            UnavailableError, match=r"127\.0\.0\.1:1 does not answer .* check the addr"
        ) as told,
    ):
        remote.statistics()
    assert told.value.exit_status == 6


def test_a_library_that_is_at_fault_is_told_as_such(stocked, weights, monkeypatch):
    def fails(self):
        raise LibraryError("the library x.db: its disk is full (why); free some space, then try again")

    monkeypatch.setattr(Library, "statistics", fails)
    with operated(stocked, weights) as remote, pytest.raises(LibraryError, match="its disk is full"):
        remote.statistics()


def test_a_sender_that_stops_sending_is_not_waited_for_and_what_it_sent_is_lost_alone(
    empty, offer, weights
):
    limits = replace(PLENTY, receive_seconds=1)
    token_holder = replace(WITH_TOKENS, limits=limits)
    with Library.open(empty) as library:
        token = tokens.add(library, "boss", "operator")
        with running_server(library, weights, token_holder) as port:
            never = threading.Event()

            def stalling() -> Iterator[Entry]:
                yield from entries(offer, 2)
                never.wait(20)

            with RemoteLibrary(Connection(f"127.0.0.1:{port}", token)) as remote:
                began = time.monotonic()
                with pytest.raises(UnavailableError, match="call again"):
                    remote.take_in(stalling())
                assert time.monotonic() - began < 10
                never.set()
                assert remote.take_in(entries(offer, 3)) == (3, 0)


def test_a_listing_that_is_given_up_leaves_the_server_as_it_was(stocked, weights):
    with operated(stocked, weights) as remote:
        for _ in range(20):
            for stream in (remote.facts(), remote.export()):
                next(stream)
                stream.close()
        assert len(list(remote.facts())) == 12


# Many


def test_a_library_of_many_entries_streams_both_ways_and_little_of_it_is_held(empty, offer, weights):
    """Both sides are in this process: what it holds at any time is less than half of what it moves."""
    count, first = 1000, entry_of(offer, 0, classes=60)

    def many() -> Iterator[Entry]:
        for number in range(count):
            signature = replace(first.signature, counts=first.signature.counts + number)
            yield replace(first, entry=f"{number:032x}", signature=signature)

    def most_held(job: Callable[[], object]) -> int:
        tracemalloc.start()
        try:
            job()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    moved = count * len(encode_entry(first))
    with operated(empty, weights) as remote:
        assert most_held(lambda: remote.take_in(many())) < moved / 2
        assert most_held(lambda: sum(1 for _ in remote.export())) < moved / 2
        assert sum(1 for _ in remote.facts()) == count
