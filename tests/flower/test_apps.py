"""Whole runs of both Flower apps, in this process: real devices, real tasks, and broken ones."""

import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from in_process_grid import InProcessGrid, Mischief

from client.flower_app import DeviceSettings, client_app
from common.errors import InputError, LibraryError
from common.proto_codec import decode_contribution, encode_contribution
from common.record_codec import MESSAGE, message_of
from server.flower_app import DeviceOutcome, FleetSettings, serve_fleet, server_app
from server.library import Library

pytestmark = pytest.mark.usefixtures("in_a_run")

MAX_UPLINK_BYTES = 20_000


@pytest.fixture
def settings(library_path) -> FleetSettings:
    return FleetSettings(library_path, idle_seconds=0, poll_seconds=0, ttl_seconds=60)


@pytest.fixture
def devices(tasks) -> DeviceSettings:
    return DeviceSettings(data=tasks, keep_ratio=0.3, iterations=3, evaluate_at=(2,), threads=1)


@pytest.fixture
def library(library_path):
    with Library.open(library_path) as library:
        yield library


def partitions(count: int) -> dict[int, dict[str, int]]:
    return {100 + number: {"partition-id": number, "num-partitions": count} for number in range(count)}


def test_each_device_adapts_and_its_mask_votes_for_those_after_it(library, weights, settings, devices):
    grid = InProcessGrid(client_app(devices), partitions(3))
    seen: list[DeviceOutcome] = []
    report = serve_fleet(grid, library, weights, replace(settings, at_once=1), seen.append)

    assert [device.stage for device in report.devices] == ["adapted"] * 3
    assert (report.entries_before, report.entries_after, len(library)) == (0, 3, 3)
    assert report.errors == {}
    entries = [entry.entry for entry in library.entries()]
    for number, device in enumerate(report.devices):
        assert device.node == 100 + number
        assert device.partition == number
        assert device.request == entries[number]
        assert {neighbour.entry for neighbour in device.neighbours} == set(entries[:number])
        assert device.origin == ("vote" if number else "importance")
        assert list(device.accuracies) == [0, 2, 3]
        assert all(seconds >= 0 for seconds in device.seconds.values())
        assert device.counts == library.entries()[number].mask.counts
        assert 0 < device.parameters <= device.held_parameters
        assert 0 < device.bytes_up <= MAX_UPLINK_BYTES
        assert device.bytes_down > 2 * device.parameters
        assert device.probe_bytes > 0
    assert [device.stage for device in seen] == ["describing", "adapting", "adapted"] * 3


def test_the_same_seed_and_order_give_the_same_masks(library, library_path, weights, settings, devices):
    again = library_path.with_name("again.db")
    shutil.copy(library_path, again)
    plain = replace(settings, at_once=1, explore=0)  # runners-up are drawn by the request, so anew
    serve_fleet(InProcessGrid(client_app(devices), partitions(2)), library, weights, plain)
    with Library.open(again) as other:
        serve_fleet(InProcessGrid(client_app(devices), partitions(2)), other, weights, plain)
        assert [e.mask for e in other.entries()] == [e.mask for e in library.entries()]


def test_a_later_run_keeps_the_entries_and_lets_them_vote(library, weights, settings, devices):
    first = serve_fleet(InProcessGrid(client_app(devices), partitions(2)), library, weights, settings)
    before = library.entries()
    second = serve_fleet(InProcessGrid(client_app(devices), partitions(1)), library, weights, settings)
    assert (second.entries_before, second.entries_after) == (first.entries_after, 3)
    assert library.entries()[:2] == before
    assert {n.entry for n in second.devices[0].neighbours} == {entry.entry for entry in before}


def test_no_more_devices_are_in_flight_or_served_than_the_settings_say(
    library, weights, settings, devices
):
    grid = InProcessGrid(client_app(devices), partitions(3))
    report = serve_fleet(grid, library, weights, replace(settings, devices=2, at_once=2))
    assert len(report.devices) == 2
    assert report.unserved == 1
    assert grid.most_in_flight == 2
    assert not any(step.startswith("102 ") for step in grid.pushed)


# What goes wrong with one device


def lost(request, reply):
    return None


def garbage(request, reply):
    return Message(RecordDict({MESSAGE: ConfigRecord({MESSAGE: b"\xff\xff"})}), reply_to=request)


def nothing(request, reply):
    return Message(RecordDict(), reply_to=request)


def too_late(request, reply):
    return Message(Error(ErrorCode.MESSAGE_UNAVAILABLE, "TTL expired"), reply_to=request)


def crashed(request, reply):
    return Message(Error(ErrorCode.CLIENT_APP_CRASHED), reply_to=request)


def unmeasured(request, reply):
    if request.metadata.message_type == "train.adapt":
        reply.content["measured"]["accuracy-0"] = 1.5
    return reply


def test_a_device_that_fails_is_counted_with_its_reason_and_stops_no_other(
    library, weights, settings, devices, tasks, tmp_path, caplog
):
    whole = {"data-path": str(tasks / "task0")}
    unreadable = shutil.copytree(tasks / "task0", tmp_path / "unreadable")
    (unreadable / "train" / "class1" / "0.png").write_bytes(b"no image")
    one_class = shutil.copytree(tasks / "task0", tmp_path / "one_class")
    for name in ("class1", "class2"):
        for part in ("train", "val"):
            shutil.rmtree(one_class / part / name)

    def another_request(request, reply):
        if request.metadata.message_type == "train.adapt":
            contribution = decode_contribution(message_of(reply.content), library.offer.structure)
            forged = replace(contribution, request_id="0" * 32)
            reply.content[MESSAGE][MESSAGE] = encode_contribution(forged)
        return reply

    broken: dict[int, tuple[dict[str, Any], Mischief | None, str, str]] = {
        1: ({"data-path": str(unreadable)}, None, "device", "its own log says why"),
        2: ({"data-path": str(one_class)}, None, "device", "its own log says why"),
        3: ({"data-path": str(tmp_path / "nowhere")}, None, "device", "its own log says why"),
        4: ({"partition-id": 7}, None, "device", "none for partition 7"),
        5: (whole | {"parameters": 1}, None, "refused", "parameters"),
        6: (whole | {"keep-ratio": "much"}, None, "device", "keep-ratio is 'much'; it is a number"),
        7: (whole, lost, "silent", "no reply in 1 s"),
        8: (whole, garbage, "refused", "no task description"),
        9: (whole, nothing, "refused", "no message among no records"),
        10: (whole, too_late, "silent", "TTL expired"),
        11: (whole, crashed, "device", "an error of code 8"),
        12: (whole, another_request, "refused", "answers for its own request"),
        13: (whole, unmeasured, "refused", "'accuracy-0' is 1.5"),
        14: (whole | {"state-dir": "/nowhere"}, None, "device", "cannot be written"),
        15: (whole, None, "unreachable", "the node left"),
        16: (whole, None, "unreachable", "the node left"),
    }
    nodes = {node: config for node, (config, *_) in broken.items()} | {99: whole}
    grid = InProcessGrid(
        client_app(devices),
        nodes,
        mischief={node: mischief for node, (_, mischief, *_) in broken.items() if mischief},
        unreachable={15: [""], 16: []},
    )
    report = serve_fleet(grid, library, weights, replace(settings, ttl_seconds=1))

    outcomes = {device.node: device for device in report.devices}
    for node, (_, _, failure, says) in broken.items():
        assert outcomes[node].stage == "failed", node
        assert outcomes[node].failure == failure, (node, outcomes[node].error)
        assert says in str(outcomes[node].error)
    assert outcomes[99].stage == "adapted"
    assert len(library) == 1
    assert "class1" not in report.to_json(), "no class name leaves a device"
    for said_there in ("cannot be read as an image", "at least two classes", "put images into"):
        assert said_there in caplog.text
    assert report.errors == {"device": 7, "refused": 5, "silent": 2, "unreachable": 2}


def test_a_devices_own_log_tells_what_is_left_out_of_its_images_and_nobody_else(
    library, weights, settings, tasks, tmp_path, caplog
):
    """Folders of a file server beside the tasks are no tasks, and change no device's partition."""
    own = Path(shutil.copytree(tasks, tmp_path / "tasks"))
    for name in (".ipynb_checkpoints", "@eaDir", "#recycle"):
        (own / name).mkdir()
        (own / "task0" / "train" / name).mkdir()
    (own / "task0" / "train" / "class0" / "._0.png").write_bytes(b"no image")
    devices = DeviceSettings(data=own, keep_ratio=0.3, iterations=1, threads=1)
    grid = InProcessGrid(client_app(devices), partitions(1))
    report = serve_fleet(grid, library, weights, settings)
    assert [device.stage for device in report.devices] == ["adapted"]
    told = [line for line in caplog.messages if line.startswith("left out of")]
    folders = "#recycle, .ipynb_checkpoints, @eaDir"
    assert told == [f"left out of {own / 'task0'}: 1 hidden file, 3 folders ({folders})"]
    assert "eaDir" not in report.to_json()


def test_a_look_for_replies_that_takes_long_costs_no_device_its_visit(
    library, weights, settings, devices, monkeypatch
):
    class SlowOnce(InProcessGrid):
        looks = 0

        def pull_messages(self, message_ids):
            self.looks += 1
            if self.looks > 1:
                return super().pull_messages(message_ids)
            time.sleep(0.6)
            return []

    monkeypatch.setattr("server.fleet.GRACE_SECONDS", 0)
    grid = SlowOnce(client_app(devices), partitions(1))
    (device,) = serve_fleet(grid, library, weights, replace(settings, ttl_seconds=0.5)).devices
    assert device.stage == "adapted"


def test_a_library_that_cannot_store_a_mask_fails_that_device_alone(
    library, weights, settings, devices, monkeypatch
):
    record = library.record
    failures = iter([LibraryError("the disk is full")])

    def record_or_fail(*contributed):
        for error in failures:
            raise error
        return record(*contributed)

    monkeypatch.setattr(library, "record", record_or_fail)
    report = serve_fleet(InProcessGrid(client_app(devices), partitions(2)), library, weights, settings)
    assert [(d.failure, d.error) for d in report.devices] == [
        ("server", "the disk is full"),
        (None, None),
    ]


def test_a_watcher_that_fails_stops_nothing(library, weights, settings, devices):
    def fail(outcome):
        raise ValueError(outcome.stage)

    grid = InProcessGrid(client_app(devices), partitions(1))
    report = serve_fleet(grid, library, weights, settings, fail)
    assert [device.stage for device in report.devices] == ["adapted"]


def test_a_run_whose_time_is_over_says_who_was_not_finished_and_who_not_asked(
    library, weights, settings, devices
):
    grid = InProcessGrid(client_app(devices), partitions(2), mischief={100: lost})
    report = serve_fleet(grid, library, weights, replace(settings, at_once=1, max_seconds=0.01))
    assert [(d.node, d.failure) for d in report.devices] == [(100, "unfinished")]
    assert report.unserved == 1


def test_a_run_that_is_stopped_keeps_what_was_recorded_and_reports_it(
    library, library_path, weights, settings, devices
):
    grid = InProcessGrid(client_app(devices), partitions(2))
    path = library_path.with_name("report.json")

    def stop(outcome):
        if outcome.stage == "adapted":
            raise SystemExit(0)  # what `flwr stop` raises in a ServerApp

    with pytest.raises(SystemExit):
        serve_fleet(grid, library, weights, replace(settings, at_once=1, report=path), stop)
    report = json.loads(path.read_text())
    assert [device["stage"] for device in report["devices"]] == ["adapted"]
    assert report["entries_after"] == len(library) == 1


# What the apps read from a run's configuration, and what they leave on a device


def test_the_apps_read_their_settings_from_the_run(library_path, checkpoint, tasks, tmp_path):
    run_config: dict[str, Any] = {
        "library": str(library_path),
        "checkpoint": str(checkpoint),
        "report": str(tmp_path / "report.json"),
        "idle-seconds": 0.0,
        "data": str(tasks),
        "keep-ratio": 0.3,
        "iterations": 2,
        "evaluate-at": "1",
    }
    grid = InProcessGrid(client_app(), partitions(1), run_config)
    server_app()(grid, Context(1, 0, {}, RecordDict(), dict(run_config)))
    report = json.loads((tmp_path / "report.json").read_text())
    (device,) = report["devices"]
    assert device["stage"] == "adapted"
    assert list(device["accuracies"]) == ["0", "1", "2"]
    assert report["entries_after"] == 1
    assert report["errors"] == {}


def test_a_run_with_an_unknown_setting_is_refused_by_both_sides(library_path, weights, tasks):
    run_config: dict[str, Any] = {"library": str(library_path), "itterations": 2, "idle-seconds": 0}
    grid = InProcessGrid(client_app(), partitions(1), run_config)
    with pytest.raises(InputError, match="itterations is unknown"):
        server_app()(grid, Context(1, 0, {}, RecordDict(), dict(run_config)))
    settings = FleetSettings(library_path, idle_seconds=0)
    with Library.open(library_path) as library:
        (device,) = serve_fleet(grid, library, weights, settings).devices
    assert device.failure == "device"
    assert "itterations is unknown" in str(device.error)


def test_a_node_with_a_place_for_it_keeps_the_offer_on_disk_until_it_has_adapted(
    library, weights, settings, devices, tmp_path
):
    network = tmp_path / "network.safetensors"
    place = {"partition-id": 0, "state-dir": str(tmp_path), "network-path": str(network)}
    grid = InProcessGrid(client_app(devices), {5: place})
    kept = []

    def look(outcome):
        kept.append((len(list(tmp_path.glob("*.offer"))), len(grid.contexts[5].state)))

    serve_fleet(grid, library, weights, settings, look)
    assert kept == [(1, 0), (0, 0), (0, 0)]
    assert network.stat().st_size > 0


def test_offers_of_runs_that_never_came_back_are_freed_after_a_week(
    library, weights, settings, devices, tmp_path
):
    for name, days in (("old", 8), ("young", 6)):
        offer = tmp_path / f"{name}.offer"
        offer.touch()
        os.utime(offer, (time.time() - days * 86_400,) * 2)
    grid = InProcessGrid(client_app(devices), {5: {"partition-id": 0, "state-dir": str(tmp_path)}})
    serve_fleet(grid, library, weights, settings)
    assert [offer.name for offer in tmp_path.glob("*.offer")] == ["young.offer"]


def test_without_one_flower_keeps_the_offer_between_the_two_messages(library, weights, settings, devices):
    grid = InProcessGrid(client_app(devices), partitions(1))
    kept = []
    serve_fleet(grid, library, weights, settings, lambda _: kept.append(len(grid.contexts[100].state)))
    assert kept == [2, 0, 0]


def test_a_device_that_was_not_asked_first_says_so(devices):
    request = Message(RecordDict(), 1, "train.adapt")
    reply = client_app(devices)(request, Context(1, 1, {"partition-id": 0}, RecordDict(), {}))
    assert str(reply.error.reason).startswith("nothing is kept of an offer here")
