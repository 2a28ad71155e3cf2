"""The command lines as people use them: documented commands run, bad input is told in a sentence."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from documents import Terminal, read_blocks
from interruptible import start_interruptible
from PIL import Image
from random_weights import random_weights
from safetensors.torch import save_file

from common.backbone import Backbone

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
}


def draw(folder: Path, classes: int, images: int, seed: int) -> Path:
    """A task of stripes: each class has a direction and a colour of its own, under noise."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[:32, :32]
    for label in range(classes):
        angle = np.pi * label / classes + seed
        for part, count in (("train", images), ("val", 6)):
            place = folder / part / f"class-{label}"
            place.mkdir(parents=True)
            for number in range(count):
                phase = generator.random() * 6
                wave = np.sin(0.8 * (rows * np.cos(angle) + columns * np.sin(angle)) + phase)
                pixels = 128 + 70 * wave[..., None] * np.ones(3) + generator.normal(0, 25, (32, 32, 3))
                picture = np.clip(pixels, 0, 255).astype(np.uint8)
                Image.fromarray(picture).save(place / f"{number}.png")
    return folder


def save_checkpoint(path: Path, seed: int) -> None:
    save_file(random_weights(Backbone.from_timm("test_resnet", num_classes=20), seed), path)


def furnish(place: Path) -> Path:
    """A directory with a checkpoint, two tasks of the operator's and one of the device's."""
    save_checkpoint(place / "backbone.safetensors", seed=0)
    draw(place / "tasks" / "first", 3, 16, seed=1)
    draw(place / "tasks" / "second", 4, 16, seed=2)
    draw(place / "mine", 3, 16, seed=3)
    return place


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return furnish(tmp_path_factory.mktemp("place"))


def call(place: Path, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        words, cwd=place, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def done(place) -> Path:
    """The place after all commands of docs/files.md, run as they stand there."""
    with Terminal(place, ENVIRONMENT) as terminal:
        for block in read_blocks(ROOT / "docs" / "files.md"):
            terminal.follow(block)
    return place


def test_the_documented_exchange_by_files_ends_with_the_device_in_the_library(done):
    entries = json.loads(call(done, "maskvote-server", "list", "library.db", "--json").stdout)
    assert [entry["method"] for entry in entries] == ["iterative", "iterative", "smsp"]
    assert entries[-1]["neighbours"] == 2
    assert (done / "network.safetensors").stat().st_size < (done / "backbone.safetensors").stat().st_size


def test_seeding_again_does_nothing_again(done):
    words = "seed library.db --checkpoint backbone.safetensors --tasks tasks --keep-ratio 0.3"
    began = time.monotonic()
    again = call(done, "maskvote-server", *words.split(), "--iterations", "20000", "--json")
    assert again.returncode == 0
    assert len(json.loads(again.stdout)) == 2
    assert time.monotonic() - began < 60


def test_every_command_has_help_and_every_documented_command_exists():
    for module in ("server", "client", "simulations"):
        program = {"server": "maskvote-server", "client": "maskvote-client"}.get(module, "maskvote-sim")
        top = call(ROOT, program, "--help").stdout
        named = re.findall(rf"{program} ([a-z]+)", (ROOT / "README.md").read_text())
        for command in set(named):
            assert re.search(rf"^  {command} ", top, flags=re.MULTILINE), f"{program} {command}"


BAD = {
    "an unknown model": (
        "maskvote-server create new.db --model resnet1 --images tasks/first",
        2,
        "did you mean",
    ),
    "a checkpoint of another model": (
        "maskvote-server create new.db --model resnet18 --checkpoint backbone.safetensors "
        "--images tasks/first",
        2,
        "does not fit resnet18",
    ),
    "a pickled checkpoint": (
        "maskvote-server create new.db --model test_resnet --checkpoint weights.pth --images tasks/first",
        2,
        "pickled checkpoints are refused",
    ),
    "a library that is there": (
        "maskvote-server create library.db --model test_resnet --num-classes 20 --image-size 32 "
        "--checkpoint backbone.safetensors --images tasks/first",
        2,
        "library.db",
    ),
    "no library": ("maskvote-server list nothing.db", 4, "nothing.db"),
    "a library that is a text": ("maskvote-server list text.db", 4, "text.db"),
    "a request that is none": (
        "maskvote-server assign library.db text.db out --checkpoint backbone.safetensors",
        2,
        "is no maskvote file",
    ),
    "other weights than the library's": (
        "maskvote-server assign library.db device.request out --checkpoint other.safetensors",
        3,
        "founded on",
    ),
    "a folder without images": (
        "maskvote-client describe --offer server.offer --data empty --keep-ratio 0.3",
        2,
        "train",
    ),
    "one class only": (
        "maskvote-client describe --offer server.offer --data lonely --keep-ratio 0.3",
        2,
        "at least two classes",
    ),
    "an unreadable image": (
        "maskvote-client describe --offer server.offer --data broken --keep-ratio 0.3",
        2,
        "0.png cannot be read as an image",
    ),
    "a keep ratio above one": (
        "maskvote-client describe --offer server.offer --data mine --keep-ratio 3",
        2,
        "it lies in (0, 1]",
    ),
    "no budget": ("maskvote-client describe --offer server.offer --data mine", 2, "at least one"),
}


@pytest.fixture(scope="module")
def spoiled(done) -> Path:
    """The same place, with files beside the good ones that are of no use."""
    (done / "text.db").write_text("this is a text\n")
    (done / "weights.pth").write_bytes(b"\x80\x02}q\x00.")
    (done / "empty").mkdir()
    for name, classes in (("lonely", 1), ("broken", 2)):
        draw(done / name, classes, 4, seed=4)
    (done / "broken" / "train" / "class-0" / "0.png").write_bytes(b"no image")
    save_checkpoint(done / "other.safetensors", seed=1)
    return done


@pytest.mark.parametrize(("words", "status", "sentence"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_sentence_and_tells_whose_fault_it_was(spoiled, words, status, sentence):
    before = (spoiled / "library.db").read_bytes()
    result = call(spoiled, *words.split())
    assert result.returncode == status, result.stderr
    assert sentence in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert (spoiled / "library.db").read_bytes() == before
    assert not (spoiled / "new.db").exists()


def test_a_budget_below_the_smallest_network_names_what_is_feasible(done):
    words = "describe --offer server.offer --data mine --parameters 10 --out small.request"
    assert call(done, "maskvote-client", *words.split()).returncode == 0
    answer = call(
        done, "maskvote-server", "assign", "library.db", "small.request", "out",
        "--checkpoint", "backbone.safetensors",
    )  # fmt: skip
    assert answer.returncode == 2
    assert re.search(r"ask for at least [\d,]+ parameters", answer.stderr)


def test_a_full_disk_is_told_and_leaves_no_half_file(done):
    """A limit on file sizes stands for the disk: the system refuses the write in the same way."""
    result = call(
        done, "bash", "-c",
        "ulimit -f 64; maskvote-client adapt --offer server.offer --assignment device.assignment "
        "--data mine --iterations 1 --out second.contribution --save second.safetensors",
    )  # fmt: skip
    assert result.returncode == 2, result.stderr
    assert "second.safetensors cannot be written" in result.stderr
    assert not [path.name for path in done.iterdir() if "second.safetensors" in path.name]


def test_ctrl_c_while_seeding_loses_nothing_and_the_same_command_goes_on(done):
    draw(done / "more" / "third", 3, 16, seed=5)
    words = "seed library.db --checkpoint backbone.safetensors --tasks more --keep-ratio 0.3 --iterations"
    process = start_interruptible(
        ["maskvote-server", *words.split(), "100000"],
        cwd=done, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (done / "library.db-wal").exists() and time.monotonic() < deadline:
        time.sleep(0.2)  # until it has opened the library
    time.sleep(6)  # a line is due after five seconds
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert "what was stored stays" in told
    assert re.search(r"^Seeding: 0 of 1, .*; third: [\d,]+ of 100,000, ", told, re.MULTILINE)
    assert len(json.loads(call(done, "maskvote-server", "list", "library.db", "--json").stdout)) == 3
    again = call(done, "maskvote-server", *words.split(), "5", "--json")
    assert len(json.loads(again.stdout)) == 1
