"""Private signatures through Flower: the run asks for them, or a node does for itself."""

from dataclasses import replace

import pytest
from in_process_grid import InProcessGrid

from client.flower_app import DeviceSettings, client_app
from common.signature import is_private
from server.flower_app import FleetSettings, serve_fleet
from server.library import Library

pytestmark = pytest.mark.usefixtures("in_a_run")


@pytest.fixture
def settings(library_path) -> FleetSettings:
    return FleetSettings(library_path, at_once=1, idle_seconds=0, poll_seconds=0, ttl_seconds=60)


@pytest.mark.parametrize(
    ("run", "node", "private"),
    [
        ({}, {"epsilon": 8.0}, [False, True]),
        ({"epsilon": 2.0}, {}, [True, True]),
        ({"epsilon": 2.0}, {"epsilon": 0.0}, [True, False]),
    ],
)
def test_each_device_tells_as_privately_as_it_is_set(
    library_path, weights, settings, tasks, run, node, private
):
    devices = DeviceSettings(data=tasks, keep_ratio=0.3, iterations=1, evaluate_at=(), threads=1)
    nodes = {100: {"partition-id": 0}, 101: {"partition-id": 1, **node}}
    with Library.open(library_path) as library:
        grid = InProcessGrid(client_app(replace(devices, **run)), nodes)
        report = serve_fleet(grid, library, weights, settings)
        assert [device.stage for device in report.devices] == ["adapted"] * 2
        assert [len(device.neighbours) for device in report.devices] == [0, 1]
        center = library.offer.probe.center
        assert [is_private(e.signature, center) for e in library.entries()] == private


def test_a_device_with_a_guarantee_that_is_none_is_told_so_and_tells_nothing(
    library_path, weights, settings, tasks
):
    devices = DeviceSettings(data=tasks, keep_ratio=0.3, iterations=1, evaluate_at=(), threads=1)
    grid = InProcessGrid(client_app(devices), {100: {"partition-id": 0, "epsilon": -1.0}})
    with Library.open(library_path) as library:
        report = serve_fleet(grid, library, weights, settings)
        assert [device.stage for device in report.devices] == ["failed"]
        assert "epsilon is -1.0" in str(report.devices[0].error)
        assert library.statistics().unanswered == 0
