"""The gRPC door: who is let in, what is answered, what is refused, and how the server ends."""

import codecs
import json
import socket
import sqlite3
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import grpc
import numpy as np
import pytest
import structlog
from certificates import Authority
from grpc import StatusCode
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_server import PLENTY, running_server
from random_tasks import random_signature

from benchmarks.grpc_abuse import SlowConnection
from common.backbone import weights_digest
from common.budget import Budget
from common.errors import InputError
from common.exchange import Contribution, Limits, TaskDescription
from common.grpc_codec import (
    AUTHORIZATION,
    DEVICES,
    ERROR_KIND,
    PART_BYTES,
    RETRY,
    UNLIMITED,
    Resume,
    announced_probe,
    decode_announcement,
    decode_part,
    decode_terms,
    encode_fetch_probe,
    encode_fetch_subnetwork,
    full_name,
)
from common.proto_codec import (
    MAX_MESSAGE_BYTES,
    decode_assignment,
    decode_receipt,
    encode_contribution,
    encode_task_description,
    with_subnetwork,
)
from protos.devices_pb2 import GetOfferResponse
from server import grpc_calls, serving, tokens
from server.coordinator import Coordinator
from server.library import Library
from server.refusals import PER_MINUTE
from server.serving import ServeSettings, Tls

REQUEST_ID = "ab" * 16


class Device:
    """Raw calls, as any program could make them from the .proto."""

    def __init__(self, channel: grpc.Channel, token: str | None = None) -> None:
        self._channel = channel
        self._metadata = [] if token is None else [(AUTHORIZATION, f"Bearer {token}")]

    def call(self, method: str, message: bytes = b"", **options) -> bytes:
        path = full_name(DEVICES.methods_by_name[method])
        return self._channel.unary_unary(path)(message, metadata=self._metadata, timeout=20, **options)

    def fetch(self, method: str, message: bytes) -> tuple[str, int, bytes]:
        path = full_name(DEVICES.methods_by_name[method])
        parts = self._channel.unary_stream(path)(message, metadata=self._metadata, timeout=20)
        announced, offset = decode_announcement(next(parts))
        return announced.sha256, offset, b"".join(decode_part(part) for part in parts)

    def refused(self, method: str, message: bytes = b"", **options) -> grpc.RpcError:
        with pytest.raises(grpc.RpcError) as refused:
            self.call(method, message, **options)
        return refused.value


def trailing(error: grpc.RpcError) -> dict[str, str]:
    return dict(error.trailing_metadata() or ())


@pytest.fixture
def library(tmp_path, offer, weights):
    with Library.create(tmp_path / "library.db", offer, weights_digest(weights)) as library:
        yield library


@pytest.fixture
def request_message(offer) -> bytes:
    signature = random_signature(offer.probe, np.random.default_rng(0))
    return encode_task_description(TaskDescription(REQUEST_ID, signature, Budget(keep_ratio=0.3)))


@contextmanager
def connected(library, weights, settings: ServeSettings | None = None, token: str | None = None):
    with (
        running_server(library, weights, settings) as port,
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        yield Device(channel, token)


@pytest.fixture
def device(library, weights):
    with connected(library, weights) as device:
        yield device


def with_tokens(**changes) -> ServeSettings:
    return replace(ServeSettings(address="127.0.0.1:0", limits=PLENTY, grace_seconds=5), **changes)


def test_a_device_is_offered_what_the_library_stands_for(device, offer, weights):
    message, terms = decode_terms(device.call("GetOffer"))
    sha256, offset, probe = device.fetch("FetchProbe", encode_fetch_probe(None))
    assert (terms.model, terms.weights_digest) == ("test_resnet", weights_digest(weights))
    assert (announced_probe(message).sha256, offset, probe) == (sha256, 0, bytes(offer.probe.to_bytes()))
    assert terms.limits == PLENTY


def test_the_least_budgets_are_the_least_that_are_not_refused(device, offer):
    _, terms = decode_terms(device.call("GetOffer"))
    signature = random_signature(offer.probe, np.random.default_rng(0), classes=7)
    least = terms.budgets.parameters + 7 * terms.budgets.parameters_per_class
    for number, (budget, less) in enumerate(
        (
            (Budget(parameters=least), Budget(parameters=least - 1)),
            (
                Budget(keep_ratio=terms.budgets.keep_ratio),
                Budget(keep_ratio=0.9 * terms.budgets.keep_ratio),
            ),
        )
    ):
        task = TaskDescription(f"{number:032x}", signature, budget)
        assert device.call("Assign", encode_task_description(task))
        refused = device.refused("Assign", encode_task_description(replace(task, budget=less)))
        assert trailing(refused)[ERROR_KIND] == "BudgetError"
        assert "smallest" in refused.details()


def test_the_mask_comes_at_once_and_its_network_when_it_is_fetched(
    device, library, weights, request_message
):
    choice = device.call("Assign", request_message)
    sha256, _, network = device.fetch("FetchSubNetwork", encode_fetch_subnetwork(REQUEST_ID, None))
    message = with_subnetwork(choice, len(network), sha256)
    received = decode_assignment(message, network, library.offer.structure)
    stored = library.assignment_of(REQUEST_ID)
    assert received.mask == stored.mask
    expected = Coordinator(library, weights).cut(stored.mask)
    assert network == bytes(expected.to_bytes())


@pytest.mark.parametrize("at", [0, 1, 1000, -1, None])
def test_a_download_goes_on_at_the_byte_where_it_stopped_also_after_a_restart(
    library, weights, request_message, at
):
    with connected(library, weights) as device:
        device.call("Assign", request_message)
        sha256, _, whole = device.fetch("FetchSubNetwork", encode_fetch_subnetwork(REQUEST_ID, None))
    at = len(whole) if at is None else at % len(whole)
    with connected(library, weights) as device:
        resume = Resume(sha256, at)
        again, offset, rest = device.fetch("FetchSubNetwork", encode_fetch_subnetwork(REQUEST_ID, resume))
    assert (again, offset) == (sha256, at)
    assert whole[:at] + rest == whole


def test_what_is_had_of_another_payload_is_sent_anew(device, request_message):
    device.call("Assign", request_message)
    resume = Resume("0" * 64, 100)
    _, offset, _ = device.fetch("FetchSubNetwork", encode_fetch_subnetwork(REQUEST_ID, resume))
    assert offset == 0


def test_more_than_there_is_of_a_payload_cannot_be_had(device, request_message):
    device.call("Assign", request_message)
    sha256, _, whole = device.fetch("FetchSubNetwork", encode_fetch_subnetwork(REQUEST_ID, None))
    message = encode_fetch_subnetwork(REQUEST_ID, Resume(sha256, len(whole) + 1))
    assert device.refused("FetchSubNetwork", message).code() is StatusCode.INVALID_ARGUMENT


def test_a_contribution_is_recorded_once_and_acknowledged_alike(device, library, request_message):
    device.call("Assign", request_message)
    stored = library.assignment_of(REQUEST_ID)
    scores = {name: np.where(stored.mask[name], 1.0, -1.0) for name in stored.mask}
    mask = stored.mask.keep_top(stored.mask.structure, scores, stored.target)
    message = encode_contribution(Contribution(REQUEST_ID, mask, 0.25, 0.75, 50))
    receipts = {device.call("Record", message) for _ in range(3)}
    assert {decode_receipt(receipt).entry for receipt in receipts} == {REQUEST_ID}
    assert len(receipts) == len(library) == 1


def test_nobody_is_let_in_without_a_token_that_is_known_and_not_revoked(library, weights):
    token = tokens.add(library, "kitchen", "device")
    with (
        running_server(library, weights, with_tokens()) as port,
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        assert Device(channel, token).call("GetOffer")
        for wrong in (None, "", "x", token[:-1], token + "x", token.swapcase(), "mv_" + "A" * 43):
            refused = Device(channel, wrong).refused("GetOffer")
            assert refused.code() is StatusCode.UNAUTHENTICATED
            assert trailing(refused)[ERROR_KIND] == "TokenError"
        tokens.revoke(library, "kitchen")
        assert Device(channel, token).refused("GetOffer").code() is StatusCode.UNAUTHENTICATED


def test_a_host_that_guesses_tokens_is_neither_looked_up_nor_logged_and_known_ones_are_served(
    library, weights, monkeypatch
):
    looked_up = []
    identify = serving.identify

    def counted(library, token):
        looked_up.append(token)
        return identify(library, token)

    monkeypatch.setattr(serving, "identify", counted)
    right = tokens.add(library, "kitchen", "device")
    guesses = [f"mv_{number:043d}" for number in range(PER_MINUTE + 40)]
    with (
        running_server(library, weights, with_tokens()) as port,
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
        structlog.testing.capture_logs() as log,
    ):
        kitchen = Device(channel, right)
        kitchen.call("GetOffer")
        refused = [Device(channel, guess).refused("GetOffer") for guess in guesses]
        last = refused[-1]
        assert last.code() is StatusCode.RESOURCE_EXHAUSTED
        assert 0 < int(trailing(last)[RETRY]) <= 1000
        assert kitchen.call("GetOffer")
    unknown = [error.code() is StatusCode.UNAUTHENTICATED for error in refused]
    assert PER_MINUTE <= sum(unknown) < PER_MINUTE + 20  # some more while they were refused
    assert len(looked_up) == sum(unknown) + 2
    assert sum(line["event"] == "call" for line in log) == sum(unknown) + 2


def test_an_operators_token_is_not_for_devices(library, weights):
    token = tokens.add(library, "boss", "operator")
    with connected(library, weights, with_tokens(), token) as device:
        refused = device.refused("GetOffer")
    assert refused.code() is StatusCode.PERMISSION_DENIED
    assert "role operator" in refused.details()


def test_one_device_gets_nothing_of_what_another_asked_for(library, weights, request_message):
    mine, theirs = (tokens.add(library, name, "device") for name in ("mine", "theirs"))
    with (
        running_server(library, weights, with_tokens()) as port,
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        Device(channel, mine).call("Assign", request_message)
        other = Device(channel, theirs)
        assert other.refused("Assign", request_message).code() is StatusCode.PERMISSION_DENIED
        fetch = encode_fetch_subnetwork(REQUEST_ID, None)
        assert other.refused("FetchSubNetwork", fetch).code() is StatusCode.PERMISSION_DENIED
    assert library.assignment_of(REQUEST_ID).contributor == "mine"


def test_a_device_without_a_name_gets_nothing_of_what_one_with_a_name_asked_for(
    library, weights, request_message
):
    token = tokens.add(library, "kitchen", "device")
    settings = with_tokens(anonymous=True)
    with (
        running_server(library, weights, settings) as port,
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        Device(channel, token).call("Assign", request_message)
        nobody = Device(channel)
        assert nobody.refused("Assign", request_message).code() is StatusCode.PERMISSION_DENIED
        fetch = encode_fetch_subnetwork(REQUEST_ID, None)
        assert nobody.refused("FetchSubNetwork", fetch).code() is StatusCode.PERMISSION_DENIED


def test_a_damaged_row_is_told_as_what_no_repetition_mends(library, weights, request_message):
    with connected(library, weights) as device:
        device.call("Assign", request_message)
        with closing(sqlite3.connect(library.path)) as other, other:
            other.execute("UPDATE tasks SET rounds = rounds + 1")
        refused = device.refused("FetchSubNetwork", encode_fetch_subnetwork(REQUEST_ID, None))
    assert refused.code() is StatusCode.DATA_LOSS
    assert trailing(refused)[ERROR_KIND] == "DamagedError"


def test_a_message_too_large_is_refused_before_it_is_read(device):
    refused = device.refused("Assign", bytes(MAX_MESSAGE_BYTES + 1))
    assert refused.code() is StatusCode.RESOURCE_EXHAUSTED
    assert RETRY not in trailing(refused)


def test_compressed_messages_are_refused_so_that_none_is_a_bomb(device):
    refused = device.refused("Assign", bytes(1000), compression=grpc.Compression.Gzip)
    assert refused.code() is StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("method", sorted(DEVICES.methods_by_name))
@pytest.mark.parametrize("garbage", [b"\xff" * 20, b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x03abc" * 100])
def test_garbage_gets_a_status_and_a_sentence(device, library, method, garbage):
    if method == "GetOffer":
        assert device.call(method, garbage)
        return
    refused = device.refused(method, garbage)
    assert refused.code() is StatusCode.INVALID_ARGUMENT
    assert trailing(refused)[ERROR_KIND] in ("InputError", "SignatureError", "BudgetError")
    assert refused.details()
    assert library.statistics().unanswered == 0


def test_haste_is_told_when_to_come_again(library, weights):
    limits = Limits(calls_per_minute=60, burst=5)
    settings = with_tokens(anonymous=True, limits=limits)
    with connected(library, weights, settings) as device:
        for _ in range(5):
            device.call("GetOffer")
        refused = device.refused("GetOffer")
        assert refused.code() is StatusCode.RESOURCE_EXHAUSTED
        assert trailing(refused)[ERROR_KIND] == "UnavailableError"
        assert 0 < int(trailing(refused)[RETRY]) <= 1000
        time.sleep(int(trailing(refused)[RETRY]) / 1000)
        assert device.call("GetOffer")


def test_who_sends_too_much_is_told_when_to_come_again_and_what_was_sent_is_answered(
    library, weights, request_message
):
    limits = replace(PLENTY, bytes_per_minute=len(request_message) - 1)
    with connected(library, weights, with_tokens(anonymous=True, limits=limits)) as device:
        terms = decode_terms(device.call("GetOffer"))[1]
        assert terms.limits == limits
        assert device.call("Assign", request_message)
        refused = device.refused("Assign", request_message)
        assert refused.code() is StatusCode.RESOURCE_EXHAUSTED
        assert "bytes a minute" in refused.details()
        assert 0 < int(trailing(refused)[RETRY]) <= 1000


def test_a_server_of_before_the_limit_of_bytes_is_understood_to_have_none(device):
    message = GetOfferResponse.FromString(device.call("GetOffer"))
    message.limits.ClearField("bytes_per_minute")
    assert decode_terms(message.SerializeToString())[1].limits == replace(
        PLENTY, bytes_per_minute=UNLIMITED
    )


def test_a_message_that_does_not_come_is_not_waited_for(library, weights):
    settings = with_tokens(anonymous=True, limits=replace(PLENTY, receive_seconds=1))
    with connected(library, weights, settings) as device:
        never = threading.Event()

        def nothing():
            never.wait(20)
            yield b""

        path = full_name(DEVICES.methods_by_name["Assign"])
        began = time.monotonic()
        call = device._channel.stream_unary(path).future(nothing(), timeout=20)
        assert call.exception().code() is StatusCode.DEADLINE_EXCEEDED
        assert time.monotonic() - began < 10
        assert "call again" in call.exception().details()
        never.set()


def test_health_and_reflection_need_no_token(library, weights):
    with (
        running_server(library, weights, with_tokens()) as port,
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        for service in ("", DEVICES.full_name, "maskvote.v1.Operators"):
            answer = HealthStub(channel).Check(HealthCheckRequest(service=service))
            assert answer.status == HealthCheckResponse.SERVING
        reflected = ProtoReflectionDescriptorDatabase(channel)
        assert {DEVICES.full_name, "maskvote.v1.Operators"} < set(reflected.get_services())
        found = reflected.FindFileContainingSymbol("maskvote.v1.TaskDescription")
        assert "request_id" in str(found)


@pytest.mark.parametrize("deaf", [False, True])
def test_a_watcher_is_told_of_the_end_and_does_not_put_it_off(library, weights, deaf):
    """One that takes nothing can be told nothing: it has as long as running calls have."""
    grace, said = (2, []) if deaf else (60, [])
    with running_server(library, weights, with_tokens(grace_seconds=grace)) as port:
        channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        watching = HealthStub(channel).Watch(HealthCheckRequest(service=""))
        said.append(next(watching).status)
        if deaf:
            other = SlowConnection(f"127.0.0.1:{port}").speak()
            other.ask("/grpc.health.v1.Health/Watch", b"")
            time.sleep(0.2)
        began = time.monotonic()
    assert time.monotonic() - began < 20
    said += [answer.status for answer in watching]
    channel.close()
    assert said == [HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING]


def test_health_knows_its_services_alone_and_bears_only_so_many_watchers(library, weights, monkeypatch):
    monkeypatch.setattr("server.health.MAX_WATCHERS", 2)
    with running_server(library, weights) as port, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        health = HealthStub(channel)
        for method in (health.Check, lambda request: next(health.Watch(request))):
            with pytest.raises(grpc.RpcError) as refused:
                method(HealthCheckRequest(service="x" * 1000))
            assert refused.value.code() is StatusCode.NOT_FOUND
        watchers = [health.Watch(HealthCheckRequest(service="")) for _ in range(2)]
        for watcher in watchers:
            next(watcher)
        with pytest.raises(grpc.RpcError) as refused:
            next(health.Watch(HealthCheckRequest(service="")))
        assert refused.value.code() is StatusCode.RESOURCE_EXHAUSTED
        for watcher in watchers:
            watcher.cancel()


def test_who_waits_for_a_locked_library_holds_up_nobody_else(library, weights, request_message):
    """Sixteen assignments wait for the lock of another process, and the offer is still had at once."""
    with connected(library, weights) as device, ThreadPoolExecutor(16) as threads:
        device.call("GetOffer")
        other = sqlite3.connect(library.path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        waiting = [threads.submit(device.call, "Assign", request_message) for _ in range(16)]
        time.sleep(0.3)
        began = time.monotonic()
        device.call("GetOffer")
        took = time.monotonic() - began
        assert not any(answer.done() for answer in waiting)
        other.execute("ROLLBACK")
        other.close()
        assert len({answer.result() for answer in waiting}) == 1
    assert took < 1


def test_a_log_that_cannot_be_written_ends_no_call(library, weights, request_message):
    def full(*_):
        raise OSError(28, "No space left on device")

    structlog.configure(processors=[full])
    try:
        with pytest.raises(OSError, match="No space"):
            structlog.get_logger().info("anything")
        with suppress(OSError), connected(library, weights) as device:
            assert device.call("Assign", request_message)
    finally:
        structlog.reset_defaults()


def test_devices_speak_tls_and_with_a_client_ca_show_who_they_are(
    tmp_path, library, weights, request_message
):
    authority = Authority(tmp_path / "pki")
    server, pi = authority.certify("server"), authority.certify("pi-7")
    stranger = Authority(tmp_path / "others").certify("pi-7")
    settings = with_tokens(tls=Tls(server.certificate, server.key, client_ca=authority.ca))
    roots = authority.ca.read_bytes()
    with running_server(library, weights, settings) as port:
        address = f"localhost:{port}"
        own = grpc.ssl_channel_credentials(roots, pi.key.read_bytes(), pi.certificate.read_bytes())
        with grpc.secure_channel(address, own) as channel:
            Device(channel).call("Assign", request_message)
        assert library.assignment_of(REQUEST_ID).contributor == "certificate:pi-7"
        for credentials in (
            grpc.ssl_channel_credentials(roots),
            grpc.ssl_channel_credentials(
                roots, stranger.key.read_bytes(), stranger.certificate.read_bytes()
            ),
        ):
            with grpc.secure_channel(address, credentials) as channel:
                assert Device(channel).refused("GetOffer").code() is StatusCode.UNAVAILABLE
        with grpc.insecure_channel(address) as channel:
            assert Device(channel).refused("GetOffer").code() is StatusCode.UNAVAILABLE


def test_a_renewed_certificate_is_used_without_a_restart(tmp_path, library, weights):
    old, new = Authority(tmp_path / "old", "old"), Authority(tmp_path / "new", "new")
    pair = old.certify("server")
    settings = with_tokens(anonymous=True, tls=Tls(*pair))
    with running_server(library, weights, settings) as port:

        def offered(authority: Authority) -> bool:
            credentials = grpc.ssl_channel_credentials(authority.ca.read_bytes())
            options = [("grpc.use_local_subchannel_pool", 1)]
            with grpc.secure_channel(f"localhost:{port}", credentials, options) as channel:
                try:
                    return bool(Device(channel).call("GetOffer"))
                except grpc.RpcError:
                    return False

        assert offered(old)
        renewed = new.certify("server")
        pair.certificate.write_bytes(b"half of a certifi")  # read in the middle of its renewal
        assert offered(old)
        pair.key.write_bytes(renewed.key.read_bytes())
        pair.certificate.write_bytes(renewed.certificate.read_bytes())
        assert offered(new)
        assert not offered(old)


def test_tls_files_that_are_no_use_are_told_at_the_start(tmp_path, library, weights):
    authority = Authority(tmp_path)
    one, other = authority.certify("one"), authority.certify("other")
    for tls, sentence in (
        (Tls(tmp_path / "none.crt", one.key), r"none\.crt cannot be read"),
        (Tls(one.certificate, other.key), r"one\.crt and .*other\.key do not go together"),
        (Tls(one.key, one.certificate), r"one\.key holds no certificate: .* swapped"),
        (Tls(one.certificate, one.certificate), r"one\.crt holds no private key: .* swapped"),
        (Tls(*one, client_ca=one.key), r"one\.key holds no certificate"),
    ):
        with (
            pytest.raises(InputError, match=sentence),
            running_server(library, weights, with_tokens(tls=tls)),
        ):
            pass


def test_tls_files_as_a_windows_editor_saves_them_are_served_with(tmp_path, library, weights):
    authority = Authority(tmp_path)
    own, pi = authority.certify("server"), authority.certify("pi-7")
    roots = authority.ca.read_bytes()
    for path in (*own, authority.ca):
        path.write_bytes(codecs.BOM_UTF8 + path.read_bytes().replace(b"\n", b"\r\n"))
    settings = with_tokens(tls=Tls(*own, client_ca=authority.ca))
    credentials = grpc.ssl_channel_credentials(roots, pi.key.read_bytes(), pi.certificate.read_bytes())
    with (
        running_server(library, weights, settings) as port,
        grpc.secure_channel(f"localhost:{port}", credentials) as channel,
    ):
        assert Device(channel).call("GetOffer")


@pytest.mark.parametrize("address", ["0.0.0.0:7070", "[::]:7070", "192.168.1.2:7070", "example.org:7070"])
def test_beyond_this_machine_there_is_no_listening_without_tls_unless_told(address):
    with pytest.raises(InputError, match="without TLS they read every token"):
        ServeSettings(address=address)
    assert ServeSettings(address=address, insecure=True)
    tls = Tls(Path("a"), Path("b"))
    assert ServeSettings(address=address, tls=tls)
    with pytest.raises(InputError, match="--anonymous lets all of them in"):
        ServeSettings(address=address, tls=tls, anonymous=True)
    assert ServeSettings(address=address, tls=replace(tls, client_ca=Path("c")), anonymous=True)


@pytest.mark.parametrize("address", ["7070", ":7070", "host:", "host:port", "127.0.0.1:99999", ""])
def test_an_address_is_a_host_and_a_port(address):
    for setting in ("address", "metrics_address"):
        with pytest.raises(InputError, match="it is HOST:PORT"):
            ServeSettings(**{setting: address})


@pytest.mark.parametrize("address", ["::1:7070", "unix:///run/birds", "http://127.0.0.1:9464"])
def test_an_address_that_would_be_another_to_grpc_is_refused(address):
    for setting in ("address", "metrics_address"):
        with pytest.raises(InputError, match="the address is"):
            ServeSettings(**{setting: address})


def test_localhost_is_listened_on_as_the_loopback_of_either_kind(library, weights):
    with running_server(library, weights, with_tokens(address="localhost:0")) as port:
        for target in (f"ipv4:127.0.0.1:{port}", f"ipv6:[::1]:{port}"):
            with grpc.insecure_channel(target) as channel:
                assert Device(channel).refused("GetOffer").code() is StatusCode.UNAUTHENTICATED


def test_a_port_that_is_taken_is_told(library, weights):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for settings in (with_tokens(address=address), with_tokens(metrics_address=address)):
            with pytest.raises(InputError, match="free port"), running_server(library, weights, settings):
                pass


def test_what_runs_at_the_end_may_end_and_nothing_new_begins(
    library, weights, request_message, monkeypatch
):
    """A vote that is slow is answered, and stored, though the server was told to stop meanwhile."""
    begun, choose = threading.Event(), Coordinator.choose

    def slow(self, *arguments):
        begun.set()
        time.sleep(1)
        return choose(self, *arguments)

    monkeypatch.setattr(Coordinator, "choose", slow)
    with ThreadPoolExecutor(1) as threads:
        with running_server(library, weights) as port:
            channel = grpc.insecure_channel(f"127.0.0.1:{port}")
            answer = threads.submit(Device(channel).call, "Assign", request_message)
            assert begun.wait(10)
        assert answer.result()
    assert library.assignment_of(REQUEST_ID) is not None
    assert Device(channel).refused("GetOffer").code() is StatusCode.UNAVAILABLE
    channel.close()


def test_a_fault_of_the_server_is_told_by_its_name_in_the_log_alone(library, weights, monkeypatch):
    def fault(self, *arguments):
        raise RuntimeError("a secret of the server")

    monkeypatch.setattr(Coordinator, "choose", fault)
    message = encode_task_description(
        TaskDescription(
            REQUEST_ID,
            random_signature(library.offer.probe, np.random.default_rng(0)),
            Budget(keep_ratio=0.5),
        )
    )
    with structlog.testing.capture_logs() as log, connected(library, weights) as device:
        refused = device.refused("Assign", message)
    assert refused.code() is StatusCode.INTERNAL
    assert "secret" not in refused.details()
    name = trailing(refused)[grpc_calls.CALL]
    assert name in refused.details()
    assert name in {line.get("call") for line in log if line["event"] == "fault"}


def test_a_receiver_that_is_cut_off_in_the_middle_is_no_fault(library, weights, request_message):
    path = full_name(DEVICES.methods_by_name["FetchSubNetwork"])
    with structlog.testing.capture_logs() as log, running_server(library, weights) as port:
        address = f"127.0.0.1:{port}"
        with grpc.insecure_channel(address) as channel:
            Device(channel).call("Assign", request_message)
            for pause in range(10):
                receiver = SlowConnection(address).speak()
                receiver.ask(path, encode_fetch_subnetwork(REQUEST_ID, None))
                time.sleep(pause / 100)
                receiver.close()
            assert Device(channel).call("GetOffer")
    assert {line["status"] for line in log if line.get("method") == "FetchSubNetwork"} == {"CANCELLED"}
    assert "fault" not in {line["event"] for line in log}


def test_every_call_is_a_line_of_the_log_with_request_caller_status_and_bytes(
    library, weights, request_message
):
    token = tokens.add(library, "kitchen", "device")
    with (
        structlog.testing.capture_logs() as log,
        connected(library, weights, with_tokens(), token) as device,
    ):
        answer = device.call("Assign", request_message)
        device.refused("Assign", b"\xff")
    lines = [line for line in log if line["event"] == "call"]
    assert [line["status"] for line in lines] == ["OK", "INVALID_ARGUMENT"]
    assert lines[0]["request"] == REQUEST_ID
    assert lines[0]["caller"] == "kitchen"
    assert (lines[0]["received"], lines[0]["sent"]) == (len(request_message), len(answer))
    assert "this is no task description" in lines[1]["error"]
    assert lines[0]["call"] != lines[1]["call"]
    json.dumps(lines)


def test_prometheus_reads_calls_bytes_and_the_library(library, weights, request_message):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    settings = with_tokens(anonymous=True, metrics_address=address)
    with connected(library, weights, settings) as device:
        device.call("Assign", request_message)
        device.refused("Assign", b"\xff")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        text = opener.open(f"http://{address}/metrics", timeout=5).read().decode()
    for line in (
        'maskvote_calls_total{method="Assign",status="OK"} 1.0',
        'maskvote_calls_total{method="Assign",status="INVALID_ARGUMENT"} 1.0',
        f'maskvote_bytes_total{{direction="received",method="Assign"}} {len(request_message) + 1:.1f}',
        'maskvote_calls_running{method="Assign"} 0.0',
        "maskvote_library_requests_unanswered 1.0",
        "maskvote_library_entries_voting 0.0",
    ):
        assert line in text.splitlines(), text
    assert "process_resident_memory_bytes" in text


def test_a_part_of_a_payload_is_small_beside_the_limit_of_a_message():
    assert PART_BYTES < MAX_MESSAGE_BYTES / 2
    assert timedelta(seconds=grpc_calls.STALLED_SECONDS) > timedelta(minutes=5)
