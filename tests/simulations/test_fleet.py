"""Simulated fleets: tasks are dealt fairly, alternatives are of one size, and a whole fleet runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from glyph_tasks import glyph_backbone
from PIL import Image
from random_weights import random_weights
from safetensors.torch import save_file

from common.backbone import Backbone
from common.budget import Budget
from common.errors import TaskDataError
from common.task_data import load_folder
from common.tuning_settings import FineTuneSettings
from server.budget import allot
from simulations.alternatives import ALTERNATIVES
from simulations.baselines import MASKS, NETWORKS, alternative
from simulations.cli import cli
from simulations.contest import Contest
from simulations.devices import lay_out
from simulations.fleet_cli import _finish
from simulations.glyphs import render
from simulations.plots import curves
from simulations.tasks import ClassPool, TaskChoice, draw_tasks

CHARACTERS = "ABDEFGHK"


@pytest.fixture(scope="module")
def pool() -> ClassPool:
    backbone = glyph_backbone()
    pixels, labels = render(CHARACTERS, 14, size=32, seed=0)
    images = torch.from_numpy(pixels)[:, None]
    per_class = [images[labels == k] for k in range(len(CHARACTERS))]
    return ClassPool(
        tuple(CHARACTERS),
        tuple(part[:10] for part in per_class),
        tuple(part[10:] for part in per_class),
        backbone,
    )


def test_tasks_are_by_turns_close_and_random_and_the_same_for_a_seed():
    tasks = draw_tasks(80, 6, 10, np.random.default_rng(3), "t")
    assert tasks == draw_tasks(80, 6, 10, np.random.default_rng(3), "t")
    for number, task in enumerate(tasks):
        assert len(set(task.classes)) == 10
        if number % 2 == 0:
            assert max(task.classes) - min(task.classes) < 20
            assert task.name.endswith("close")


def test_too_few_classes_for_a_close_task_are_told():
    with pytest.raises(TaskDataError, match="at least 20"):
        draw_tasks(19, 1, 10, np.random.default_rng(0), "t")


def test_relatedness_is_the_share_of_common_classes():
    one, other = TaskChoice("a", (0, 1, 2)), TaskChoice("b", (2, 1, 5))
    assert one.relatedness(other) == other.relatedness(one) == 2 / 4
    assert one.relatedness(one) == 1


def test_two_owners_share_no_training_image_and_all_evaluation_images(pool):
    choice = TaskChoice("t", (0, 3))
    first, second = (pool.task(choice, owners=2, owner=k) for k in (0, 1))
    rows = [{image.numpy().tobytes() for image in task.train.pixels} for task in (first, second)]
    assert not rows[0] & rows[1]
    assert len(rows[0] | rows[1]) == 20
    assert torch.equal(first.evaluation.pixels, second.evaluation.pixels)


def test_a_device_reads_from_its_directory_what_the_pool_gave_it(pool, tmp_path):
    choice = TaskChoice("t", (1, 2, 5))
    task = pool.task(choice, images=6)
    read = load_folder(lay_out(tmp_path / "device", pool, choice, images=6), pool.backbone)
    everything = torch.arange(len(task.train))
    assert torch.equal(read.train.labels, task.train.labels)
    assert torch.equal(read.train.batch(everything), task.train.batch(everything))


def contest(pool: ClassPool, keep_ratio: float) -> Contest:
    structure = pool.backbone.structure()
    return Contest(
        pool.backbone,
        random_weights(pool.backbone),
        structure,
        pool.task(TaskChoice("t", (0, 1, 2))),
        allot(structure, Budget(keep_ratio=keep_ratio), 3),
        FineTuneSettings(iterations=2, batch_size=8),
        seed=1,
        evaluate_at=(1,),
    )


def test_the_alternatives_on_the_command_line_are_those_that_there_are():
    assert (*MASKS, *NETWORKS) == ALTERNATIVES


@pytest.mark.parametrize("way", ALTERNATIVES)
def test_every_alternative_but_the_dense_ones_has_the_size_of_the_contest(pool, way):
    terms = contest(pool, 0.3)
    adapted = alternative(way, terms)
    assert sorted(adapted.accuracies) == ([0] if way == "linear probe" else [0, 1, 2])
    held = sum(parameter.numel() for parameter in adapted.network.parameters())
    counts = terms.structure.sizes if way in ("dense", "linear probe") else terms.counts
    assert held == terms.structure.parameters(counts, 3)


def test_curves_are_drawn_from_the_record_alone(tmp_path):
    ways = {"SMSP vote": {"0": 0.4, "10": 0.6}, "L1": {"0": 0.3, "10": 0.5}}
    devices = [
        {"name": name, "error": None, "accuracies": ways} for name in ("one", "two", "three", "four")
    ]
    devices.append({"name": "five", "error": "no image", "accuracies": {}})
    curves({"title": "test", "devices": devices}, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > 1000


def record_of_two(*errors: str | None) -> dict:
    """The record of a device for each of these errors, None where it did not fail."""
    device = {
        "neighbours": [],
        "counts": [1],
        "held_parameters": 2,
        "bytes_down": 3,
        "bytes_up": 4,
        "seconds": {"fit": 0.5, "tune": 0.5},
        "accuracies": {"SMSP vote": {"0": 0.4, "10": 0.6}, "linear probe": {"0": 0.3}},
    }
    return {
        "title": "test",
        "run": {"keep_ratio": 0.1},
        "units": 5,
        "backbone_parameters": 6,
        "devices": [
            {"name": f"device{number}", "error": error}
            | (device if error is None else {"accuracies": {}})
            for number, error in enumerate(errors)
        ],
    }


def test_a_way_without_a_point_that_others_have_leaves_its_place_in_the_table_empty(tmp_path):
    (tmp_path / "record.json").write_text(json.dumps(record_of_two(None, None)))
    result = CliRunner().invoke(cli, ["plot", str(tmp_path / "record.json")])
    assert result.exit_code == 0, result.exception
    (probe,) = [line for line in result.stdout.splitlines() if "linear probe" in line]
    assert [cell.strip() for cell in probe.split("│")[1:-1]] == ["linear probe", "30.0%", ""]
    assert (tmp_path / "curves.png").exists()


@pytest.mark.parametrize("errors", [(None, "no image"), ("no image", "no image")])
def test_a_fleet_whose_devices_failed_is_written_told_and_no_success(tmp_path, capsys, errors):
    assert _finish(record_of_two(*errors), tmp_path, as_json=False) == 1
    assert "device1 failed: no image" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"record.json", "curves.png"}


def test_a_fleet_on_photographs_runs_from_the_command_line(pool, tmp_path):
    """Founding, seeding, Flower, alternatives: all on files, as a user would."""
    for k, name in enumerate(pool.names):
        for part, images in (("train", pool.train[k]), ("val", pool.evaluation[k])):
            folder = tmp_path / "photographs" / part / name
            folder.mkdir(parents=True)
            for number, image in enumerate(images.numpy()):
                Image.fromarray(image[0]).convert("RGB").save(folder / f"{number}.png")
    backbone = Backbone.from_timm("test_resnet", num_classes=7)
    save_file(random_weights(backbone), tmp_path / "backbone.safetensors")
    words = (
        "fleet --backbone test_resnet --checkpoint backbone.safetensors --image-size 32 "
        "--data photographs --library-tasks 2 --devices 2 --ways 3 --keep-ratio 0.4 --iterations 2 "
        "--seeding-iterations 3 --alternatives L1 --json"
    )
    whole_paths = [str(path) if (path := tmp_path / word).exists() else word for word in words.split()]
    out = tmp_path / "refused"
    wrong = CliRunner().invoke(cli, [*whole_paths, "--num-classes", "5", "--out", str(out)])
    assert "--num-classes is 5, and " in str(wrong.exception)
    assert "backbone.safetensors has 7 classes" in str(wrong.exception)
    assert not out.exists()
    result = subprocess.run(
        [sys.executable, "-m", "simulations", *words.split()],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    record = json.loads(result.stdout)
    assert record["library_entries"] == 4
    assert [device["name"] for device in record["devices"]] == ["00-device00-close", "01-device01-random"]
    for device in record["devices"]:
        assert device["error"] is None
        assert list(device["accuracies"]) == ["SMSP vote", "L1"]
        assert device["bytes_up"] < 20_000
    (directory,) = (tmp_path / "runs").iterdir()
    assert {path.name for path in directory.glob("*.*")} >= {"record.json", "curves.png", "library.db"}
