"""Worker processes end with who started them: at once, whoever is told to stop, and however."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from glyph_tasks import glyph_backbone
from interruptible import (
    alive,
    family_of,
    kill,
    seconds_until_ended,
    start_interruptible,
    wait_until,
)
from random_weights import random_weights
from safetensors.torch import save_file

from common.images import PixelImages
from server.founding import found_library
from simulations.devices import lay_out
from simulations.glyphs import render
from simulations.tasks import ClassPool, TaskChoice
from simulations.worker_processes import worker_processes

ROOT = Path(__file__).parents[2]
STOPPED = "stopped; what was stored stays, and the same command goes on from there"
WORKERS = """
import time
from pathlib import Path
import click
from common.command_line import run
from simulations.worker_processes import worker_processes

def work(number):
    Path(f"begun{number}").touch()
    end = time.monotonic() + 300
    while time.monotonic() < end:
        pass

@click.command()
def command():
    with worker_processes(2) as pool:
        for future in [pool.submit(work, number) for number in range(4)]:
            future.result()

if __name__ == "__main__":
    run(command)
"""
FLOWER = """
from pathlib import Path
import click
from common.command_line import run
from common.settings import DeviceSettings, FleetSettings
from simulations.flower_engine import run_flower

@click.command()
def command():
    here = Path.cwd()
    fleet = FleetSettings(here / "library.db", here / "backbone.safetensors", devices=2, poll_seconds=0.1)
    device = DeviceSettings(data=here / "tasks", keep_ratio=0.4, iterations=1_000_000, threads=1)
    run_flower(fleet, device, 2, 2, lambda node: None)

if __name__ == "__main__":
    run(command)
"""


def started(program: str, place: Path) -> subprocess.Popen[str]:
    (place / "program.py").write_text(program)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "program.py"]
    return start_interruptible(words, cwd=place, env=environment, stderr=subprocess.PIPE)


@pytest.fixture
def working(tmp_path) -> Iterator[tuple[subprocess.Popen[str], set[int]]]:
    """A command whose two workers compute, and its processes."""
    process = started(WORKERS, tmp_path)
    family = family_of(process)
    try:
        wait_until(lambda: len(list(tmp_path.glob("begun*"))) == 2, 120, process)
        family = family_of(process)
        assert len(family) >= 3
        yield process, family
    finally:
        kill(family)


@pytest.mark.parametrize("everybody", [False, True], ids=["to the parent alone", "as in a terminal"])
def test_ctrl_c_ends_the_workers_at_once_and_with_a_sentence(working, everybody):
    process, family = working
    if everybody:
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=60)[1]
    assert seconds_until_ended(family) < 10
    assert (process.returncode, told.strip()) == (130, STOPPED)


def test_no_worker_outlives_a_parent_that_was_killed(working):
    process, family = working
    process.kill()
    process.wait()
    assert seconds_until_ended(family) < 10


def test_what_workers_found_is_given():
    with worker_processes(1) as pool:
        assert pool.submit(abs, -3).result() == 3


def failing_beside_work() -> None:
    with worker_processes(1) as pool:
        pool.submit(time.sleep, 300)
        raise ZeroDivisionError


def test_an_error_beside_the_workers_does_not_wait_for_them():
    began = time.monotonic()
    with pytest.raises(ZeroDivisionError):
        failing_beside_work()
    assert time.monotonic() - began < 60


def test_ctrl_c_ends_flowers_engine_with_all_that_it_started(tmp_path):
    backbone, (pixels, labels) = glyph_backbone(), render("ABCD", 8, size=32, seed=0)
    weights, images = random_weights(backbone), torch.from_numpy(pixels)[:, None]
    save_file(weights, tmp_path / "backbone.safetensors")
    every = PixelImages(images, torch.from_numpy(labels), backbone)
    found_library(tmp_path / "library.db", backbone, weights, every).close()
    of_class = tuple(images[labels == k] for k in range(4))
    train, judging = tuple(part[:6] for part in of_class), tuple(part[6:] for part in of_class)
    pool = ClassPool(tuple("ABCD"), train, judging, backbone)
    for name, classes in (("one", (0, 1)), ("two", (2, 3))):
        lay_out(tmp_path / "tasks" / name, pool, TaskChoice(name, classes), images=6)
    process = started(FLOWER, tmp_path)
    family = family_of(process)
    try:
        wait_until(lambda: _named("ClientApp", family_of(process)), 120, process)
        family = family_of(process)
        process.send_signal(signal.SIGINT)
        told = process.communicate(timeout=60)[1]
        assert seconds_until_ended(family) < 10
        assert (process.returncode, told.strip()) == (130, STOPPED)
    finally:
        kill(family)


def _named(word: str, processes: set[int]) -> bool:
    """Whether one of these processes has a word in its title, as Ray's have."""
    titles = [Path(f"/proc/{pid}/cmdline") for pid in alive(processes)]
    return any(word in title.read_text() for title in titles if title.exists())
