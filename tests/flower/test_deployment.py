"""The same two apps as a Flower app bundle: `flwr run` on a SuperLink with two SuperNodes."""

import json
from pathlib import Path

from federation import federation

from server.library import Library

ROOT = Path(__file__).parents[2]


def test_two_devices_adapt_in_a_deployment_and_one_without_data_says_so(
    library_path, checkpoint, tasks, tmp_path
):
    nodes = [
        f'data-path="{tasks / "task0"}" state-dir="{tmp_path}"',
        f'data-path="{tasks / "task1"}" keep-ratio=0.5',
        "partition-id=0",
    ]
    report_path = tmp_path / "report.json"
    run_config = (
        f'library="{library_path}" checkpoint="{checkpoint}" report="{report_path}" '
        f"devices={len(nodes)} at-once=3 idle-seconds=120.0 max-seconds=300.0 "
        'iterations=2 evaluate-at="" keep-ratio=0.3 threads=1'
    )
    with federation(tmp_path / "federation", nodes) as running:
        status, log = running.run(ROOT, run_config, timeout_seconds=330)
    assert status == "finished:completed", log

    report = json.loads(report_path.read_text())
    assert [device["stage"] for device in report["devices"]].count("adapted") == 2, log
    (failed,) = [device for device in report["devices"] if device["failure"]]
    assert failed["failure"] == "device"
    assert failed["error"].startswith("this device has no data; start its SuperNode with --node-config")
    assert failed["error"] in log
    with Library.open(library_path) as library:
        assert sorted(entry.keep_ratio for entry in library.entries())[1] > 0.4
        assert len(library) == report["entries_after"] == 2
    assert not list(tmp_path.glob("*.offer"))
