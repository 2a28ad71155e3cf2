"""Devices that are ready to wait for their networks to be healed: through every door, in nobody's way."""

import socket
import statistics
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner
from grpc_server import PLENTY, running_server
from in_process_grid import InProcessGrid

from client.adapt import describe
from client.flower_app import DeviceSettings, client_app
from client.grpc_client import Connection, RemoteCoordinator
from common.backbone import Weights
from common.budget import Budget
from common.envelope import seal, unseal
from common.exchange import TaskDescription
from common.grpc_codec import DEVICES, encode_fetch_subnetwork, full_name
from common.half_precision import in_half_precision
from common.mask import Mask
from common.proto_codec import decode_assignment, encode_task_description
from common.record_codec import message_of, payload_of
from common.subnetwork import SubNetwork, cut
from common.task_data import load_folder
from server.cli import cli
from server.coordinator import Coordinator
from server.flower_app import FleetSettings, serve_fleet
from server.healing.heal_library import store_of
from server.healing.healer import healer_of
from server.library import Library
from server.serving import ServeSettings
from server.settings import VotingSettings

pytestmark = pytest.mark.usefixtures("in_a_run")

LONG = 60.0
HEALED_FOR = 1.5
"""Seconds. The worker is the last in line for a processor, and tests run in parallel."""
VOTING = VotingSettings(explore=0)
SIZE = Budget(keep_ratio=0.3)
PATIENT = replace(SIZE, wait_seconds=LONG)


@dataclass
class Place:
    """A library, and where its devices and the public images are."""

    library: Path
    weights: Weights
    tasks: Path
    metrics: int

    def request(self, number: int, budget: Budget) -> TaskDescription:
        """Of a device of its own: each of another task, or of another size of network."""
        with Library.open(self.library) as library:
            offer = library.offer
        task = load_folder(self.tasks / f"task{number % 3}", offer.backbone)
        return describe(offer, task, budget, "smsp", f"{number:032x}")

    @contextmanager
    def server(self, library: Library, **changes) -> Iterator[int]:
        settings = ServeSettings(
            address="127.0.0.1:0", anonymous=True, limits=PLENTY, voting=VOTING, grace_seconds=10,
            heal_images=self.tasks, heal_seconds=HEALED_FOR, metrics_address=f"127.0.0.1:{self.metrics}",
        )  # fmt: skip
        with running_server(library, self.weights, replace(settings, **changes)) as port:
            yield port

    def measured(self, name: str) -> float:
        """A number that Prometheus would read."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        text = opener.open(f"http://127.0.0.1:{self.metrics}/metrics", timeout=5).read().decode()
        return float(next(line for line in text.splitlines() if line.startswith(name)).split()[-1])


@pytest.fixture
def place(library_path, weights, tasks) -> Place:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    return Place(library_path, weights, tasks, port)


@pytest.fixture
def library(place) -> Iterator[Library]:
    with Library.open(place.library) as library:
        yield library


def device(port: int, downloads: Path, **settings) -> RemoteCoordinator:
    downloads.mkdir(exist_ok=True)
    return RemoteCoordinator(Connection(f"127.0.0.1:{port}"), downloads, patience_seconds=0, **settings)


def eventually(holds, seconds: float = 20.0) -> bool:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        if holds():
            return True
        time.sleep(0.05)
    return False


class Watched(InProcessGrid):
    """A grid that keeps what its nodes are sent to adapt, and in which order."""

    def push_messages(self, messages):
        (message,) = messages
        if message.metadata.message_type == "train.adapt":
            self.sent = [*getattr(self, "sent", []), (message.metadata.dst_node_id, message.content)]
        return super().push_messages([message])


# One device that waits, through every door; and one that does not


def in_process(place: Place, library: Library, request: TaskDescription) -> SubNetwork:
    store = store_of(library)
    with healer_of(library, store, place.weights, place.tasks, HEALED_FOR) as healer:
        coordinator = Coordinator(library, place.weights, VOTING, healed=store, healer=healer)
        return coordinator.assign(request).subnetwork


def by_grpc(place: Place, library: Library, request: TaskDescription) -> SubNetwork:
    downloads = place.library.parent / "downloads"
    with (
        place.server(library) as port,
        device(port, downloads, stalled_seconds=0.5) as coordinator,
    ):
        return coordinator.assign(request).subnetwork


def by_files(place: Place, library: Library, request: TaskDescription) -> SubNetwork:
    folder = place.library.parent
    seal(folder / "request", encode_task_description(request))
    options = ["--heal-images", str(place.tasks), "--heal-seconds", str(HEALED_FOR)]
    checkpoint = ["--checkpoint", str(folder / "backbone.safetensors")]
    command = ["assign", str(place.library), str(folder / "request"), str(folder / "answer")]
    ran = CliRunner().invoke(cli, [*command, *checkpoint, *options], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    message, payload = unseal(folder / "answer")
    return decode_assignment(message, payload, library.offer.structure).subnetwork


def through_flower(place: Place, library: Library, request: TaskDescription) -> SubNetwork:
    devices = DeviceSettings(
        keep_ratio=0.3, wait_seconds=request.budget.wait_seconds, iterations=1, evaluate_at=(), threads=1
    )
    grid = Watched(client_app(devices), {0: {"data-path": str(place.tasks / "task0")}})
    settings = FleetSettings(
        place.library,
        explore=0,
        devices=1,
        poll_seconds=0.05,
        heal_images=place.tasks,
        heal_seconds=HEALED_FOR,
    )
    (outcome,) = serve_fleet(grid, library, place.weights, settings).devices
    assert outcome.stage == "adapted"
    ((_, content),) = grid.sent
    message = message_of(content)
    return decode_assignment(message, payload_of(content), library.offer.structure).subnetwork


@pytest.mark.parametrize("door", [in_process, by_grpc, by_files, through_flower])
def test_a_device_that_waits_gets_a_healed_network_of_the_same_mask(door, place, library, checkpoint):
    (place.library.parent / "backbone.safetensors").symlink_to(checkpoint)
    mask = Coordinator(library, place.weights, VOTING).choose(place.request(9, SIZE)).mask
    network = door(place, library, place.request(0, PATIENT))
    assert network.mask == mask
    assert network.healed
    found = store_of(library).network(mask)
    assert found is not None
    sent = in_half_precision(found)
    assert all(network.weights[name].equal(tensor) for name, tensor in sent.items())


def test_who_does_not_wait_gets_what_is_there_at_once(place, library):
    network = by_grpc(place, library, place.request(0, SIZE))
    assert not network.healed
    assert not store_of(library).directory.joinpath("masks").exists()


def test_without_a_healer_nobody_waits(place, library, tmp_path):
    with (
        place.server(library, heal_images=None) as port,
        device(port, tmp_path / "d") as coordinator,
    ):
        coordinator.offer()
        began = time.monotonic()
        assert not coordinator.assign(place.request(0, PATIENT)).subnetwork.healed
        assert time.monotonic() - began < 5


# Nobody is in another's way


def test_others_are_served_at_once_while_one_waits_for_its_network(place, library, tmp_path):
    with place.server(library) as port, ThreadPoolExecutor(1) as thread:

        def wait() -> bool:
            with device(port, tmp_path / "patient", stalled_seconds=0.5) as patient:
                return patient.assign(place.request(0, PATIENT)).subnetwork.healed

        waiting = thread.submit(wait)
        assert eventually(lambda: place.measured("maskvote_healings_waiting") == 1)
        seconds = []
        with device(port, tmp_path / "other") as other:
            other.offer()
            for number in range(1, 21):
                request = place.request(number, Budget(keep_ratio=0.2 + number / 100))
                began = time.monotonic()
                assert not other.assign(request).subnetwork.healed
                seconds.append(time.monotonic() - began)
        assert not waiting.done()
        assert statistics.median(seconds) < 0.2
        assert waiting.result(LONG)
        assert place.measured('maskvote_healings_total{outcome="healed"}') == 1
        assert place.measured("maskvote_healing_seconds_total") > 0


def test_who_hangs_up_waits_no_more_and_who_is_waiting_when_the_server_ends_is_served(
    place, library, tmp_path
):
    coordinator = Coordinator(library, place.weights, VOTING)
    request = place.request(1, PATIENT)
    coordinator.choose(request)
    with ThreadPoolExecutor(1) as thread:
        with place.server(library) as port, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            fetch = full_name(DEVICES.methods_by_name["FetchSubNetwork"])
            call = channel.unary_stream(fetch)(encode_fetch_subnetwork(request.request_id, None))
            assert eventually(lambda: place.measured("maskvote_healings_waiting") == 1)
            call.cancel()
            assert eventually(lambda: place.measured("maskvote_healings_waiting") == 0, seconds=2)

            last = device(port, tmp_path / "d")
            last.offer()
            waiting = thread.submit(last.assign, place.request(0, PATIENT))
            assert eventually(lambda: place.measured("maskvote_healings_waiting") == 1)
        assert not waiting.result(LONG).subnetwork.healed
        last.close()


def test_a_fleet_serves_others_while_one_network_is_healed(place, library):
    devices = client_app(DeviceSettings(keep_ratio=0.3, iterations=1, evaluate_at=(), threads=1))
    nodes = {n: {"data-path": str(place.tasks / f"task{n}")} for n in range(3)}
    nodes[0] |= {"wait-seconds": LONG}
    grid = Watched(devices, nodes)
    settings = FleetSettings(
        place.library,
        devices=3,
        at_once=1,
        poll_seconds=0.05,
        heal_images=place.tasks,
        heal_seconds=HEALED_FOR,
    )
    stages = []
    report = serve_fleet(
        grid, library, place.weights, settings, lambda device: stages.append((device.node, device.stage))
    )
    assert [device.node for device in report.devices] == [1, 2, 0]
    assert [stage for node, stage in stages if node == 0] == [
        "describing", "healing", "adapting", "adapted"
    ]  # fmt: skip
    networks = {
        node: SubNetwork.from_bytes(payload_of(content), library.offer.structure)
        for node, content in grid.sent
    }
    assert [networks[node].healed for node in range(3)] == [True, False, False]


def test_a_run_that_ends_says_of_a_device_that_it_was_healing(place, library):
    devices = client_app(DeviceSettings(wait_seconds=LONG))
    grid = Watched(devices, {0: {"data-path": str(place.tasks / "task0")}})
    settings = FleetSettings(place.library, max_seconds=0.5, poll_seconds=0.05, heal_images=place.tasks)
    (device,) = serve_fleet(grid, library, place.weights, settings).devices
    assert device.failure == "unfinished"
    assert device.error == "the run ended while it was healing"


# A download that is cut off


def test_a_download_cut_off_before_healing_begins_anew_after_it_and_ends_sound(place, library, tmp_path):
    downloads, request = tmp_path / "d", place.request(0, SIZE)
    with place.server(library, heal_images=None) as port:
        with device(port, downloads) as coordinator:
            first = coordinator.assign(request)
        (part,) = downloads.glob(f"{request.request_id}.*.part")
        part.write_bytes(part.read_bytes()[: part.stat().st_size // 2])

        store_of(library).put_network(first.mask, healed_weights(place.weights, first.mask))
        with device(port, downloads) as coordinator:
            second = coordinator.assign(request)
    assert second.mask == first.mask
    assert not first.subnetwork.healed
    assert second.subnetwork.healed
    (whole,) = downloads.glob(f"{request.request_id}.*.part")
    assert whole.name != part.name


@pytest.mark.parametrize("is_of_what_there_is", [True, False])
def test_a_download_that_broke_off_is_not_waited_for_again_unless_it_has_to_begin_anew(
    place, library, tmp_path, is_of_what_there_is
):
    downloads, request = tmp_path / "d", place.request(0, PATIENT)
    with place.server(library, heal_images=None) as port, device(port, downloads) as coordinator:
        coordinator.assign(request)
    (part,) = downloads.glob(f"{request.request_id}.*.part")
    whole = part.read_bytes()
    part.write_bytes(whole[: len(whole) // 2])
    if not is_of_what_there_is:
        part.rename(downloads / f"{request.request_id}.{'0' * 64}.part")

    with (
        place.server(library, heal_seconds=2) as port,
        device(port, downloads, stalled_seconds=0.5) as coordinator,
    ):
        again = coordinator.assign(request).subnetwork
    assert again.healed != is_of_what_there_is
    assert store_of(library).has_network(again.mask) != is_of_what_there_is
    if is_of_what_there_is:
        assert part.read_bytes() == whole


def healed_weights(weights: Weights, mask: Mask) -> Weights:
    """Others than the mask cuts out of the weights."""
    return {
        name: tensor + 0.5 if tensor.is_floating_point() else tensor
        for name, tensor in cut(weights, mask).items()
    }
