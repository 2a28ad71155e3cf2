"""An adaptation that is stopped goes on where its file was written last."""

import time
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_adaptation import SETTINGS, adapt, weights_of

from common.fine_tune import FineTuneSettings
from common.images import PixelImages
from common.pruning import PruningSettings
from common.task_data import Task
from common.tuning_file import TuningFile


class Stopped(Exception):
    pass


@pytest.mark.parametrize("tuned", ["all", "head"])
@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("after", [4, 27])
def test_an_adaptation_goes_on_where_its_file_was_written(
    ours, half, task, tmp_path, after, pruned, tuned
):
    """It comes to the same network, to the last bit, and repeats no iteration."""
    settings = FineTuneSettings(iterations=30, batch_size=12, tuned=tuned)
    options = {"settings": settings, "evaluate_at": (3, 28)}
    if pruned:
        target = tuple(max(1, count // 2) for count in half.counts)
        options |= {"target": target, "pruning": PruningSettings(rounds=2)}
    whole = adapt(ours, half, task, **options)

    def stop(done: int, total: int) -> None:
        # Called before the file of an iteration is written: the one before is the last that is there.
        if done == after + 1:
            raise Stopped

    file = TuningFile(tmp_path / "tuning", every=0)
    with pytest.raises(Stopped):
        adapt(ours, half, task, **options, progress=stop, file=file)
    told: list[int] = []
    again = adapt(
        ours, half, task, **options, progress=lambda done, _: told.append(done),
        file=TuningFile(tmp_path / "tuning"),
    )  # fmt: skip
    assert told == list(range(after, 31))
    assert torch.equal(weights_of(again), weights_of(whole))
    assert again.accuracies == whole.accuracies
    assert (again.kept, again.held_out) == (whole.kept, whole.held_out)
    assert again.pruned.mask == whole.pruned.mask
    for name in half:
        assert np.array_equal(again.pruned.scores[name], whole.pruned.scores[name])
    assert [path.name for path in tmp_path.iterdir()] == ["tuning"]
    TuningFile(tmp_path / "tuning").remove()
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("changed", ["seed", "settings", "labels", "damage"])
def test_a_file_of_another_adaptation_is_not_gone_on_with(ours, half, task, tmp_path, changed):
    def stop(done: int, total: int) -> None:
        if done == 5:
            raise Stopped

    path = tmp_path / "tuning"
    with pytest.raises(Stopped):
        adapt(ours, half, task, progress=stop, file=TuningFile(path, every=0))
    options: dict = {}
    if changed == "seed":
        options["seed"] = 1
    if changed == "settings":
        options["settings"] = replace(SETTINGS, learning_rate=0.02)
    if changed == "labels":
        other = PixelImages(task.train.pixels, task.train.labels.flip(0), ours.backbone)
        task = Task(task.classes, other, task.evaluation)
    if changed == "damage":
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    told: list[int] = []
    again = adapt(
        ours, half, task, **options, progress=lambda done, _: told.append(done), file=TuningFile(path)
    )
    assert told == list(range(9))
    assert torch.equal(weights_of(again), weights_of(adapt(ours, half, task, **options)))


def test_the_time_that_was_spent_before_counts_for_the_limit(ours, half, task, tmp_path):
    def stop(done: int, total: int) -> None:
        time.sleep(0.05)
        if done == 20:
            raise Stopped

    limited = replace(SETTINGS, iterations=100_000, max_seconds=600)
    path = tmp_path / "tuning"
    with pytest.raises(Stopped):
        adapt(ours, half, task, settings=limited, progress=stop, file=TuningFile(path, every=0))
    again = adapt(ours, half, task, settings=replace(limited, max_seconds=1), file=TuningFile(path))
    assert again.iterations == 20
    (remark,) = again.remarks
    assert remark == "20 of 100000 iterations were done in the 1 seconds allowed"


def test_a_disk_that_takes_no_file_stops_no_tuning_and_is_told(ours, half, task, tmp_path):
    lost = tmp_path / "gone" / "tuning"
    adapted = adapt(ours, half, task, file=TuningFile(lost, every=0))
    assert adapted.iterations == 8
    (remark,) = adapted.remarks
    assert remark.startswith(f"{lost} cannot be written (No such file or directory)")
    assert remark.endswith("how far tuning had come was not kept")


def test_the_file_is_written_at_most_every_few_seconds_and_seldom_on_a_slow_disk(tmp_path, monkeypatch):
    """A write that takes a second is followed by twenty without one."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    file = TuningFile(tmp_path / "tuning", every=5)
    now[0] = 4.9
    assert not file.due
    now[0] = 5.0
    assert file.due

    @contextmanager
    def slow(path, private):
        with path.open("wb") as opened:
            yield opened
        now[0] += 1

    monkeypatch.setattr("common.tuning_file.writing", slow)
    file.write("identity", {}, {})
    assert now[0] == 6.0
    now[0] = 25.9
    assert not file.due
    now[0] = 26.1
    assert file.due


def test_what_was_written_is_read_by_its_identity_alone(tmp_path):
    file = TuningFile(tmp_path / "tuning")
    assert file.read("mine") is None
    file.write("mine", {"weights": torch.arange(3.0)}, {"words": "some"})
    assert file.read("yours") is None
    found = file.read("mine")
    assert found is not None
    assert found[0]["weights"].tolist() == [0, 1, 2]
    assert found[1]["words"] == "some"
    assert file.path.stat().st_mode & 0o777 == 0o600
    file.path.write_bytes(file.path.read_bytes()[:-1])
    assert file.read("mine") is None
