"""The same two apps on Flower's simulation engine: Ray, one process a device."""

import json
from dataclasses import replace

from flwr.simulation import run_simulation
from in_process_grid import InProcessGrid

from client.flower_app import DeviceSettings, client_app
from server.flower_app import DeviceOutcome, FleetSettings, serve_fleet, server_app
from server.library import Library

TASKS = 3
NODES = 4  # one more than there are tasks


def test_a_simulation_ends_as_the_run_in_this_process_does(
    library_path, weights, tasks, tmp_path, monkeypatch, in_a_run
):
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "0")
    devices = DeviceSettings(data=tasks, keep_ratio=0.3, iterations=3, evaluate_at=(), threads=1)
    report_path = tmp_path / "report.json"
    settings = FleetSettings(
        library_path,
        explore=0,  # runners-up are drawn by the request, so anew in each run
        devices=NODES,
        at_once=1,
        max_seconds=300,
        poll_seconds=0.1,
        report=report_path,
    )
    seen: list[DeviceOutcome] = []
    run_simulation(
        server_app=server_app(settings, weights=weights, watch=seen.append),
        client_app=client_app(devices),
        num_supernodes=NODES,
        backend_config={"client_resources": {"num_cpus": 1}, "init_args": {"num_cpus": 2}},
    )
    (failed,) = [outcome for outcome in seen if outcome.stage == "failed"]
    assert failed.failure == "device"
    assert str(failed.error).endswith("none for partition 3; add some, or simulate fewer nodes")
    simulated = [outcome for outcome in seen if outcome.stage == "adapted"]
    assert {outcome.partition for outcome in simulated} == set(range(TASKS))
    assert [len(outcome.neighbours) for outcome in simulated] == [0, 1, 2]
    report = json.loads(report_path.read_text())
    recorded = [device["request"] for device in report["devices"] if device["error"] is None]
    assert recorded == [outcome.request for outcome in simulated]

    order = {outcome.node: {"partition-id": outcome.partition} for outcome in simulated}
    with Library.open(library_path) as library:
        masks = [entry.mask for entry in library.entries()]
        with Library.create(tmp_path / "again.db", library.offer, library.weights_digest) as empty:
            plain = replace(settings, report=None, poll_seconds=0, devices=TASKS)
            grid = InProcessGrid(client_app(devices), order)
            here = serve_fleet(grid, empty, weights, plain).devices
            assert [entry.mask for entry in empty.entries()] == masks
    for one, other in zip(simulated, here, strict=True):
        assert one.accuracies == other.accuracies
        assert (one.node, one.counts, one.bytes_down) == (other.node, other.counts, other.bytes_down)
