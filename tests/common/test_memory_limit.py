"""How many images fit is found by trying, and what is allowed is kept to."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common.errors import InputError
from common.memory_limit import SPARE_BYTES, MemoryLimit
from common.process_memory import MEGABYTE, forget_peak, give_back, peak_bytes, resident_bytes
from common.tuning_settings import FineTuneSettings

IMAGE = 16 * MEGABYTE
ROOT = Path(__file__).parents[2]


def hold(images: int) -> None:
    """Memory that so many images take, written to."""
    torch.ones(images * IMAGE, dtype=torch.uint8)


def limit_of(room: float) -> MemoryLimit:
    """A limit that leaves so many bytes for what is tried, beside what is kept free in any case."""
    give_back()  # what earlier tests left free in this process is no room
    besides = SPARE_BYTES + MemoryLimit(resident_bytes()).pixel_bytes
    return MemoryLimit(resident_bytes() + besides + room)


def test_the_peak_is_that_of_what_was_done_since_it_was_forgotten():
    hold(40)
    forget_peak()
    before = peak_bytes()
    hold(20)
    assert 0.9 < (peak_bytes() - before) / (20 * IMAGE) < 1.1


@pytest.mark.parametrize("room", [3, 10, 25])
def test_as_many_images_are_computed_with_as_fit(room):
    fits = limit_of(room * IMAGE).images_at_once(hold, 64, "trying")
    assert room / 3 <= fits <= room


def test_no_more_are_tried_than_fit_and_none_more_than_asked_for():
    tried = []

    def run(images: int) -> None:
        tried.append(images)
        hold(images)

    assert limit_of(12 * IMAGE).images_at_once(run, 64, "trying") <= 12
    assert max(tried) <= 12
    assert limit_of(100 * IMAGE).images_at_once(hold, 7, "trying") == 7
    assert limit_of(100 * IMAGE).images_at_once(hold, 1, "trying") == 1


def test_what_is_held_later_is_left_free():
    assert limit_of(20 * IMAGE).images_at_once(hold, 64, "trying", later_bytes=15 * IMAGE) <= 5


def test_where_not_one_image_fits_the_sentence_has_a_number_with_which_it_does():
    with pytest.raises(
        InputError, match=r"tuning one image at a time needs at least [\d,]+ MB"
    ) as refused:
        limit_of(0.2 * IMAGE).images_at_once(hold, 8, "tuning")
    needed = int(re.search(r"needs at least ([\d,]+) MB", str(refused.value))[1].replace(",", ""))
    assert MemoryLimit((needed + 2) * MEGABYTE).images_at_once(hold, 8, "tuning") >= 1


ADAPT = """
import sys, torch
torch.set_num_threads(1)
from toys import example, random_mask, task_of
from common.adaptation import adapt_network
from common.fine_tune import FineTuneSettings
from common.process_memory import resident_bytes, peak_bytes
from common.subnetwork import SubNetwork
import common.process_memory as memory
ours = example("resnet18", 64)
mask = random_mask(ours.structure, 0.2)
network = SubNetwork.of(ours.backbone, ours.weights, mask).network(3)
task = task_of(ours.backbone, per_class=32)
memory.give_back()
limit = resident_bytes() + int(sys.argv[1])
peaks = []
forget = memory.forget_peak
def forget_peak():
    peaks.append(peak_bytes())
    forget()
forget_peak()
import common.memory_limit
common.memory_limit.forget_peak = forget_peak
peaks.clear()
kept = limit if sys.argv[2] == "limited" else None
settings = FineTuneSettings(iterations=1, batch_size=96, max_memory=kept)
adapted = adapt_network(network, ours.backbone, mask, task, settings, torch.Generator().manual_seed(0))
peaks.append(peak_bytes())
print(max(peaks) / limit, max(peaks) <= limit, adapted.iterations, adapted.remarks)
"""


def test_an_adaptation_stays_below_its_limit_where_it_would_not_by_itself():
    """In a process of its own, by its real peak."""
    told = {}
    for how in ("free", "limited"):
        words = [sys.executable, "-c", ADAPT, str(75 * MEGABYTE), how]
        done = subprocess.run(
            words, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        told[how] = done.stdout
    assert " False 1 ()" in told["free"]
    assert " True 1 (" in told["limited"]
    assert re.search(r"MB are enough for \d+ images at a time of the 96 in a batch", told["limited"])


def environment() -> dict[str, str]:
    paths = f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'common'}"
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["max_memory", "max_seconds"])
def test_a_limit_that_is_none_is_refused_by_name(name, wrong):
    with pytest.raises(InputError, match=rf"{name} is .*above 0, or left out"):
        FineTuneSettings(**{name: wrong})
