"""A payload on its way to a device, whatever the network, the disk or the server do to it."""

import hashlib
import time
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from devices import SMALL, WHOLE, remote
from flaky_proxy import Fault, FlakyProxy
from grpc_server import PLENTY, running_server
from hypothesis import HealthCheck, given
from hypothesis import settings as tried
from hypothesis import strategies as st

from client.adapt import describe
from client.download import partial_files
from common.backbone import weights_digest
from common.errors import InputError, UnavailableError
from common.exchange import Terms
from common.grpc_codec import (
    DEVICES,
    PART_BYTES,
    Announced,
    Resume,
    decode_fetch_subnetwork,
    encode_announcement,
    encode_part,
    encode_terms,
)
from common.proto_codec import decode_task_description, encode_choice, encode_offer
from protos.devices_pb2 import PayloadPart
from protos.maskvote_pb2 import Payload
from server.coordinator import Coordinator
from server.grpc_service import smallest_budgets
from server.library import Library


def fetched(port: int, downloads: Path, description, **changes) -> bytes:
    with remote(port, downloads, **changes) as coordinator:
        return bytes(coordinator.assign(description).subnetwork.to_bytes())


@pytest.fixture(scope="module")
def served(tmp_path_factory, offer, weights):
    """The port of a server that serves all tests of downloads."""
    path = tmp_path_factory.mktemp("served") / "library.db"
    with (
        Library.create(path, offer, weights_digest(weights)) as library,
        running_server(library, weights) as port,
    ):
        yield port


@pytest.fixture(scope="module")
def whole(served, offer, task, tmp_path_factory):
    """A request for the whole backbone, its network, and what its way to a device costs in bytes."""
    description = describe(offer, task, WHOLE, "smsp", "ab" * 16)
    with FlakyProxy(served) as proxy:
        network = fetched(proxy.port, tmp_path_factory.mktemp("whole"), description)
        return description, network, proxy.delivered


@tried(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_download_that_is_cut_anywhere_sends_no_more_than_a_part_twice(
    served, whole, hasty, tmp_path_factory, data
):
    description, network, needed = whole
    cuts = data.draw(st.lists(st.integers(0, needed - 1), min_size=1, max_size=3))
    with FlakyProxy(served, *(Fault("cut", after) for after in cuts)) as proxy:
        downloads = tmp_path_factory.mktemp("cut")
        assert fetched(proxy.port, downloads, description, patience_seconds=30) == network
    # Besides parts, a connection costs the calls that were not answered, and HTTP's own words.
    answers = needed - len(network)
    assert proxy.delivered <= needed + len(cuts) * (PART_BYTES + answers)


def test_another_process_and_another_server_go_on_with_a_download(
    library, weights, request_of, task, tmp_path
):
    description, downloads = request_of(WHOLE), tmp_path / "downloads"
    with (
        running_server(library, weights) as port,
        FlakyProxy(port, Fault("cut", 6 * 10**5)) as proxy,
        pytest.raises(UnavailableError),
    ):
        fetched(proxy.port, downloads, description)
    (partial,) = partial_files(downloads)
    had = partial.stat().st_size
    assert had % PART_BYTES == 0
    assert partial.stat().st_mode & 0o777 == 0o600
    with running_server(library, weights) as port, FlakyProxy(port) as proxy:
        network = fetched(proxy.port, downloads, description)
        assert proxy.delivered < len(network) - had + 100_000
    assert network == bytes(Coordinator(library, weights).assign(description).subnetwork.to_bytes())


def test_a_stream_that_stalls_is_given_up_and_gone_on_with(served, whole, hasty, tmp_path):
    description, network, needed = whole
    with FlakyProxy(served, Fault("stall", 700_000)) as proxy:
        began = time.monotonic()
        changes = {"patience_seconds": 30, "stalled_seconds": 1}
        assert fetched(proxy.port, tmp_path / "downloads", description, **changes) == network
        assert proxy.delivered <= needed + PART_BYTES + 10_000
        assert 1 <= time.monotonic() - began < 20


def test_what_is_garbled_on_its_way_or_on_the_disk_is_fetched_once_more(served, whole, tmp_path):
    description, network, _ = whole
    downloads = tmp_path / "downloads"
    with FlakyProxy(served, Fault("garble", 400_000)) as proxy:
        assert fetched(proxy.port, downloads, description) == network
        assert proxy.delivered > 2 * len(network)
    (path,) = partial_files(downloads)
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    with FlakyProxy(served) as proxy:
        assert fetched(proxy.port, downloads, description) == network
        assert proxy.delivered > len(network)


def test_progress_tells_bytes_from_where_it_goes_on(served, whole, tmp_path):
    description, network, _ = whole
    told = []
    with FlakyProxy(served, Fault("cut", 6 * 10**5)) as proxy:
        for _ in range(2):
            try:
                fetched(proxy.port, tmp_path / "d", description, transfer=lambda *now: told.append(now))
            except UnavailableError:
                told.append("cut")
    before, after = told[: told.index("cut")], told[told.index("cut") + 1 :]
    assert before[0] == ("network", 0, len(network))
    assert after[0] == before[-1]
    assert after[-1] == ("network", len(network), len(network))


class Lies:
    """A server that offers and assigns as a real one, and sends payloads as it likes."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self.payload: list[bytes] = []
        self.asked: list[Resume | None] = []
        self.offer = coordinator.offer()

    def methods(self):
        unary, stream = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
        return {
            "GetOffer": unary(lambda message, context: self._welcome()),
            "FetchProbe": stream(lambda message, context: iter(self.payload)),
            "Assign": unary(lambda message, context: self._assign(message)),
            "FetchSubNetwork": stream(lambda message, context: self._send(message)),
        }

    def _welcome(self):
        structure = self.offer.structure
        limits = smallest_budgets(structure)
        return encode_terms(
            encode_offer(self.offer)[0], Terms("test_resnet", "0" * 64, limits, PLENTY, "1")
        )

    def _assign(self, message):
        return encode_choice(self._coordinator.choose(decode_task_description(message)))

    def _send(self, message):
        self.asked.append(decode_fetch_subnetwork(message)[1])
        return iter(self.payload)


@pytest.fixture
def lies(library, weights):
    lies = Lies(Coordinator(library, weights))
    server = grpc.server(ThreadPoolExecutor(2))
    handlers = grpc.method_handlers_generic_handler(DEVICES.full_name, lies.methods())
    server.add_generic_rpc_handlers((handlers,))
    lies.port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield lies
    server.stop(None).wait()


PART = encode_part(bytes(1000))
SHA256 = hashlib.sha256(bytes(1000)).hexdigest()
BEYOND = PayloadPart(payload=Payload(size_bytes=2**31 + 1, sha256=bytes(32))).SerializeToString()
PAYLOADS = {
    "of more than is announced": ([encode_announcement(Announced(1999, SHA256), 0), PART, PART], "more"),
    "of less than is announced": ([encode_announcement(Announced(1001, SHA256), 0), PART], "ended after"),
    "of nothing": ([], "no announced payload|0 bytes"),
    "without an announcement": ([PART], "0 bytes"),
    "of an empty part": ([encode_announcement(Announced(1000, SHA256), 0), encode_part(b"")], "empty"),
    "from another byte": ([encode_announcement(Announced(1000, SHA256), 500), PART], "from byte 500 on"),
    "of another sha256, twice": (
        [encode_announcement(Announced(1000, "ab" * 32), 0), PART],
        "have sha256",
    ),
    "of what is no network": ([encode_announcement(Announced(1000, SHA256), 0), PART], "safetensors"),
    "beyond 2 GiB": ([BEYOND], "2147483649 bytes of payload"),
}


@pytest.mark.parametrize(("payload", "words"), PAYLOADS.values(), ids=PAYLOADS)
def test_a_payload_is_refused_that_is(lies, request_of, tmp_path, payload, words):
    lies.payload = payload
    with pytest.raises(InputError, match=words):
        fetched(lies.port, tmp_path / "downloads", request_of(SMALL))
    sizes = [path.stat().st_size for path in partial_files(tmp_path / "downloads")]
    assert sum(sizes) <= 1000


def test_what_the_disk_has_no_room_for_is_not_begun(lies, request_of, tmp_path, monkeypatch):
    lies.payload = [encode_announcement(Announced(10**9, SHA256), 0), PART]
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda directory: usage(10**9, 10**9 - 5000, 5000))
    with pytest.raises(InputError, match=r"1,000,000,000 bytes are to come, .* has room for 5,000"):
        fetched(lies.port, tmp_path / "downloads", request_of(SMALL))
    assert sum(path.stat().st_size for path in partial_files(tmp_path / "downloads")) == 0


def test_only_the_rest_is_asked_for_and_another_payload_from_its_start(lies, request_of, tmp_path):
    downloads, description = tmp_path / "downloads", request_of(SMALL)
    lies.payload = [encode_announcement(Announced(3000, "ab" * 32), 0), PART, PART]
    with pytest.raises(InputError, match="ended after 2,000 of the 3,000 bytes"):
        fetched(lies.port, downloads, description)
    lies.payload = [encode_announcement(Announced(1000, SHA256), 0), PART]
    with pytest.raises(InputError, match="safetensors"):
        fetched(lies.port, downloads, description)
    assert lies.asked == [None, Resume("ab" * 32, 2000)]
    assert [path.stat().st_size for path in partial_files(downloads)] == [1000]
