"""The same two apps as a Flower app bundle, on a SuperLink that is killed, with SuperNodes that stay."""

import json
import time
from pathlib import Path

from federation import federation

from server.library import Library

ROOT = Path(__file__).parents[2]


def test_a_killed_superlink_costs_no_entry_and_the_next_run_serves_whoever_is_there(
    library_path, checkpoint, tasks, tmp_path
):
    report_path = tmp_path / "report.json"
    nodes = [
        f'data-path="{tasks / "task0"}" state-dir="{tmp_path}"',
        f'data-path="{tasks / "task1"}" keep-ratio=0.5',
        "partition-id=0",
    ]
    settings = (
        f'library="{library_path}" checkpoint="{checkpoint}" report="{report_path}" '
        f"devices={len(nodes)} idle-seconds=120.0 max-seconds=300.0 "
        'iterations=2 evaluate-at="" keep-ratio=0.3 threads=1 '
    )
    with federation(tmp_path / "federation", nodes) as running, Library.open(library_path) as library:
        running.submit(ROOT, f"{settings} at-once=1")
        deadline = time.monotonic() + 300
        while not len(library) and time.monotonic() < deadline:
            time.sleep(0.1)
        running.kill_superlink()
        survived = library.entries()
        with Library.open(library_path) as opened:  # which checks all of the file
            assert opened.entries() == survived
        assert len(survived) == 1
        assert not report_path.exists()

        running.start_superlink()
        status, log = running.finish(running.submit(ROOT, f"{settings} at-once=3"), timeout_seconds=330)
        assert status == "finished:completed", log
        assert library.entries()[:1] == survived

    report = json.loads(report_path.read_text())
    assert [device["stage"] for device in report["devices"]].count("adapted") == 2, log
    (failed,) = [device for device in report["devices"] if device["failure"]]
    assert failed["failure"] == "device"
    assert failed["error"].startswith("this device has no data; start its SuperNode with --node-config")
    assert failed["error"] in log
    with Library.open(library_path) as library:
        of_the_last_run = library.entries()[1:]
    assert sorted(entry.keep_ratio for entry in of_the_last_run)[1] > 0.4
    assert len(of_the_last_run) == 2
