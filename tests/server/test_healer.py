"""Networks healed for those who wait: by a worker of its own, in bounded time, whatever becomes of it."""

import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from glyph_tasks import glyph_images
from healing_tasks import glyph_backbone, healed_backbone, mask_of, settled_weights
from PIL import Image

from common.backbone import Backbone, Weights, weights_digest
from common.errors import InputError, TaskDataError
from common.mask import Mask
from common.structure import Structure
from common.subnetwork import cut
from server.healing.heal import PublicImages, distance
from server.healing.healer import Healer
from server.healing.store import HealedStore

PLENTY = 60.0
SECONDS = 3.0
"""For a network. Its worker is the last in line for a processor, and tests run side by side."""


@dataclass
class Clinic:
    """A store, public images, and a healer of a small backbone."""

    place: Path
    backbone: Backbone
    structure: Structure
    weights: Weights

    def healer(self, **settings) -> Healer:
        arguments = (self.backbone, self.structure, self.weights, self.place / "images")
        return Healer(self.place / "store", *arguments, **settings)

    @property
    def store(self) -> HealedStore:
        digest = weights_digest(self.weights)
        return HealedStore(self.place / "store", self.backbone, digest, self.structure)

    def mask(self, number: int) -> Mask:
        return mask_of(self.structure, number)


@pytest.fixture(scope="module")
def clinic(tmp_path_factory) -> Clinic:
    place = tmp_path_factory.mktemp("clinic")
    backbone = glyph_backbone()
    for number, pixels in enumerate(glyph_images("abcdefgh", 8, backbone, seed=1).pixels):
        (place / "images" / str(number % 3)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[0].numpy()).save(place / "images" / str(number % 3) / f"{number}.png")
    return Clinic(place, backbone, backbone.structure(), settled_weights(backbone))


@pytest.fixture(scope="module")
def healer(clinic) -> Iterator[Healer]:
    """One whose worker is ready, and gives no network more than `SECONDS`."""
    with clinic.healer(seconds=SECONDS) as healer:
        healer.start()
        healer.request(clinic.mask(1000), PLENTY).result(PLENTY)
        yield healer


@pytest.fixture
def other(clinic, tmp_path) -> Clinic:
    """Another place, for what is to go wrong."""
    shutil.copytree(clinic.place / "images", tmp_path / "images")
    return Clinic(tmp_path, clinic.backbone, clinic.structure, clinic.weights)


def workers() -> list[int]:
    """Processes that heal for this one."""
    return [child.pid for child in multiprocessing.active_children() if child.name == "healer"]


def test_a_network_is_healed_for_one_mask_and_is_nearer_to_the_backbone(clinic, healer):
    mask, weights = clinic.mask(1), clinic.weights
    healer.request(mask, PLENTY).result(PLENTY)
    found = clinic.store.network(mask)
    assert found is not None
    plain = cut({k: v for k, v in weights.items() if k not in clinic.backbone.classifier_tensors}, mask)
    assert {n: t.shape for n, t in found.items()} == {n: t.shape for n, t in plain.items()}
    public = PublicImages.of(
        clinic.backbone, weights, glyph_images("abcdefgh", 8, clinic.backbone, seed=1)
    )
    before = distance(clinic.backbone, weights, mask, public)
    assert distance(clinic.backbone, found, mask, public, within=mask) < 0.9 * before


def test_it_takes_no_more_than_the_servers_time_nor_than_the_devices(clinic, healer):
    for number, wait, at_most in ((10, PLENTY, SECONDS), (11, 1.0, 1.0)):
        began = time.monotonic()
        healer.request(clinic.mask(number), wait).result(PLENTY)
        assert time.monotonic() - began < at_most + 3  # a busy machine is late to say so


def test_those_who_want_the_same_wait_for_one_job_and_who_goes_takes_it_from_nobody(clinic, healer):
    # One after the other: what another test no longer waits for is counted before this.
    healer.request(clinic.mask(21), PLENTY).result(PLENTY)
    before = healer.statistics
    futures = [healer.request(clinic.mask(20), PLENTY) for _ in range(3)]
    assert healer.statistics.waiting == 1
    assert futures[0].cancel()
    for future in futures[1:]:
        future.result(PLENTY)
    assert healer.statistics.healed == before.healed + 1
    assert healer.statistics.waiting == 0
    assert healer.statistics.seconds > before.seconds


def test_what_nobody_waits_for_any_more_is_stopped_and_not_kept(clinic, healer):
    stopped = healer.statistics.stopped
    running, queued, wanted = (healer.request(clinic.mask(number), PLENTY) for number in (30, 31, 32))
    time.sleep(0.3)
    began = time.monotonic()
    assert running.cancel()
    assert queued.cancel()
    wanted.result(PLENTY)
    # Its own seconds, and none of those of the others.
    assert time.monotonic() - began < SECONDS + 1.5
    assert healer.statistics.stopped == stopped + 1
    assert [clinic.store.has_network(clinic.mask(number)) for number in (30, 31, 32)] == [
        False,
        False,
        True,
    ]


def test_who_does_not_wait_is_not_kept_waiting(clinic, healer):
    assert healer.request(clinic.mask(40), 0).done()
    assert not clinic.store.has_network(clinic.mask(40))


def test_the_worker_lets_whoever_serves_go_first(healer):
    (worker,) = workers()
    assert os.getpriority(os.PRIO_PROCESS, worker) >= os.getpriority(os.PRIO_PROCESS, 0) + 10


def test_a_worker_that_dies_costs_its_device_no_time_and_is_started_again(clinic, healer, caplog):
    failed = healer.statistics.failed
    (worker,) = workers()
    future = healer.request(clinic.mask(50), PLENTY)
    time.sleep(0.3)
    os.kill(worker, 9)
    future.result(SECONDS - 0.5)
    assert not clinic.store.has_network(clinic.mask(50))
    assert healer.statistics.failed == failed + 1
    assert "worker has died (exit code -9)" in caplog.text
    healer.request(clinic.mask(50), PLENTY).result(PLENTY)
    assert clinic.store.has_network(clinic.mask(50))


def test_what_came_to_nothing_is_not_waited_for_again_until_another_backbone_is_healed(other):
    mask = other.mask(0)
    with other.healer(seconds=0.001) as healer:  # no time for anything

        def failed() -> int:
            healer.request(mask, PLENTY).result(PLENTY)
            return healer.statistics.failed

        assert failed() == 1
        assert healer.request(mask, PLENTY).done()
        assert failed() == 1
        other.store.put_backbone(healed_backbone(other.weights, other.backbone))
        assert failed() == 2
        assert failed() == 2
        assert not healer.request(other.mask(1), PLENTY).done()


# Nobody waits longer than they said, whatever is the matter


def test_a_worker_that_is_not_ready_is_waited_for_no_longer_than_a_device_is_ready_to(other):
    with other.healer(queue=2) as healer:
        began = time.monotonic()
        short, long = (healer.request(other.mask(0), seconds) for seconds in (0.3, PLENTY))
        another = healer.request(other.mask(1), PLENTY)
        assert healer.request(other.mask(2), PLENTY).done()  # the queue is full
        short.result(1.3)
        assert 0.3 <= time.monotonic() - began < 1.3
        assert not long.done()
        assert not another.done()
    assert long.done()  # nor is anybody left waiting by a healer that is closed
    assert another.done()
    assert healer.request(other.mask(0), PLENTY).done()
    assert time.monotonic() - began < 5


def test_images_that_are_no_use_are_told_once_and_nobody_waits_for_them(other, caplog):
    broken = other.place / "images" / "0" / "0.png"
    broken.write_bytes(b"no image")
    others = workers()
    with other.healer() as healer:
        healer.request(other.mask(0), PLENTY).result(PLENTY)
        assert f"the healer cannot heal: {broken} cannot be read as an image" in caplog.text
        began = time.monotonic()
        healer.request(other.mask(0), PLENTY).result(1)
        assert time.monotonic() - began < 1
        assert workers() == others


def test_what_is_left_out_of_the_public_images_is_logged_once(other, caplog):
    (other.place / "images" / "0" / "photo.heic").write_bytes(b"of a phone")
    (other.place / "images" / "@eaDir").mkdir()
    with other.healer():
        pass
    told = [line for line in caplog.messages if line.startswith("left out of")]
    assert len(told) == 1
    assert "images: 1 .heic file, 1 folder (@eaDir); image files end in" in told[0]


def test_no_images_and_no_time_are_refused_before_anything_is_started(other, tmp_path):
    with pytest.raises(InputError, match="0 seconds to heal a network; give a number above 0"):
        other.healer(seconds=0)
    shutil.rmtree(other.place / "images")
    with pytest.raises(TaskDataError, match="has 0 image files"):
        other.healer()
