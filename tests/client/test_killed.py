"""A device is switched off after each of its steps, and at any time: nothing is lost, or done twice."""

import json
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from devices import SMALL, client_process
from grpc_server import PLENTY, running_server

from client.adapt import adapt_assignment, describe, generator_of
from common.backbone import weights_digest
from common.envelope import unseal
from common.files import read_whole
from common.fine_tune import FineTuneSettings
from common.proto_codec import decode_task_description
from common.task_data import load_folder
from common.tensor_file import read_tensors
from common.tuning_file import DIGEST_BYTES
from server.coordinator import Coordinator
from server.library import Library
from server.serving import ServeSettings

STEPS = ("offer", "request", "assignment", "network.safetensors", "contribution", "receipt")
"""Files of the state, in the order in which they come to be."""
SECONDS = 60


class Device:
    """A device that adapts by `maskvote-client adapt`, in one process after the other."""

    def __init__(self, place: Path, images: Path, port: int, iterations: int = 3) -> None:
        self.state = place / "state"
        self._output = place / "output"
        self._words = [
            "adapt", "--data", str(images), "--server", f"127.0.0.1:{port}", "--state", str(self.state),
            "--keep-ratio", "0.3", "--iterations", str(iterations), "--json",
        ]  # fmt: skip

    def start(self, largest_file: int | None = None):
        return client_process(self._words, self._output, largest_file)

    def kill_after(self, step: str) -> None:
        """Start it, and kill it once this step is done."""
        process, deadline = self.start(), time.monotonic() + SECONDS
        while not (self.state / step).exists():
            assert process.is_alive(), self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.001)
        process.kill()
        process.join()

    def runs_within(self, seconds: float) -> bool:
        """Whether it is done in so many seconds; it is killed otherwise."""
        process = self.start()
        process.join(seconds)
        if process.exitcode is None:
            process.kill()
            process.join()
            return False
        assert process.exitcode == 0, self.said
        return True

    @property
    def said(self) -> str:
        return self._output.read_text()

    @property
    def outcome(self) -> dict:
        return json.loads(self.said)


@pytest.fixture
def undisturbed(offer, weights, images, tmp_path):
    """What a device contributes that nothing happens to, under a given request id."""

    def undisturbed(request_id: str):
        task = load_folder(images, offer.backbone)
        with Library.create(tmp_path / "other.db", offer, weights_digest(weights)) as other:
            description = describe(offer, task, SMALL, "smsp", request_id)
            assignment = Coordinator(other, weights).assign(description)
        settings, generator = FineTuneSettings(iterations=3), generator_of(0, images)
        return adapt_assignment(assignment, task, settings, generator)[1]

    return undisturbed


def check(library: Library, device: Device, undisturbed) -> None:
    """One entry, under the one request id, as if the device had never been killed."""
    description = decode_task_description(unseal(device.state / "request")[0])
    (entry,) = library.entries()
    assert library.statistics().unanswered == 0
    assert device.outcome["request"] == device.outcome["entry"] == description.request_id
    assert entry.signature == description.signature
    expected = undisturbed(description.request_id)
    assert (entry.mask, entry.accuracy_before, entry.accuracy_after) == (
        expected.mask,
        expected.accuracy_before,
        expected.accuracy_after,
    )


@contextmanager
def server_of(library: Path, weights, port: int = 0):
    """A server that lives as long as this context; its library is what is left of it."""
    settings = ServeSettings(address=f"127.0.0.1:{port}", anonymous=True, limits=PLENTY, grace_seconds=5)
    with Library.open(library) as opened, running_server(opened, weights, settings) as port:
        yield port


def test_a_device_killed_after_every_step_and_its_server_too(
    library, weights, images, tmp_path, undisturbed
):
    path = library.path
    with server_of(path, weights) as port:
        device = Device(tmp_path, images, port)
        device.kill_after(STEPS[0])
    requests = set()
    for step in STEPS[1:]:
        with server_of(path, weights, port):
            device.kill_after(step)
            requests.add((device.state / "request").read_bytes())
    assert len(requests) == 1
    assert device.runs_within(SECONDS)  # though the server is away: all is done
    check(library, device, undisturbed)


def test_a_device_killed_at_any_time(library, weights, images, tmp_path, port, undisturbed):
    device, seconds, kills = Device(tmp_path, images, port), 0.02, 0
    while not device.runs_within(seconds):
        seconds *= 1.3
        kills += 1
    assert kills > 3
    check(library, device, undisturbed)


def test_a_full_disk_is_told_and_when_there_is_room_it_goes_on(
    library, weights, images, tmp_path, port, undisturbed
):
    """A limit on file sizes stands for the disk: the system refuses the write in the same way."""
    device = Device(tmp_path, images, port)
    limited = device.start(largest_file=300_000)
    limited.join(SECONDS)
    assert limited.exitcode == 2
    (partial,) = device.state.glob("probe.*.part")
    assert f"{partial} cannot be written" in device.said
    assert partial.stat().st_size == 300_000
    assert device.runs_within(SECONDS)
    check(library, device, undisturbed)


def kept_of(file: Path) -> tuple[int, float]:
    """Iterations done, and seconds of tuning, as a state's tuning file tells them."""
    _, words = read_tensors(read_whole(file)[:-DIGEST_BYTES])
    place, told = json.loads(words["tuning"]), json.loads(words["adaptation"])
    return place["done"], told["seconds"]["tune"]


def test_a_device_killed_while_it_tunes_goes_on_in_the_middle_of_tuning(tmp_path, images, port):
    """The file tells more after the second process than a process that begins anew could have done."""
    device = Device(tmp_path, images, port, iterations=100_000)
    device.kill_after("tuning")
    done, seconds = kept_of(device.state / "tuning")
    assert done > 0
    process, deadline = device.start(), time.monotonic() + SECONDS
    while (found := kept_of(device.state / "tuning"))[0] == done:
        assert process.is_alive(), device.said
        assert time.monotonic() < deadline, device.said
        time.sleep(0.1)
    process.kill()
    process.join()
    assert found[0] > done
    # Both were written; a process that began anew would count its own seconds alone.
    assert found[1] > seconds
