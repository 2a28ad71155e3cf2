"""What memory `maskvote-client adapt` takes, beside a bare `import torch, timm`.

    python -m benchmarks.adapt_memory --json benchmarks/results/edge/adapt_memory.json

By files, a ResNet-18 of random weights at 64 pixels cut to a million parameters, batch 32, each way in a
process of its own. The peak of resident memory is the system's own figure, read until the command is
done: what the interpreter loads in order to end, it loads after a bare import too. Of it `anonymous` is
what no file backs, so that it cannot be dropped and read again when memory is short; the system keeps no
peak of that, so it is what was seen a thousand times a second. The limit is three times the network's
bytes (weights, gradients, momentum) and what autograd keeps of one batch. The bare loop does nothing but
tune that network on such batches: what PyTorch itself takes for it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from benchmarks.served import Ground, prepare
from client.adapt import describe
from common.envelope import seal
from common.exchange import Budget
from common.files import write_whole
from common.fitting import on_device_of
from common.proto_codec import encode_assignment, encode_offer
from common.subnetwork import SubNetwork
from common.tables import show
from common.task_data import Task, load_folder
from server.coordinator import Coordinator
from server.library import Library

BATCH, CLASSES, PARAMETERS = 32, 5, 1_000_000
FREE_MEGABYTES = 512
"""What is free on the device that is to do: a process may hold so much beside the bare import."""
BARE = "import torch, timm"
BARE_LOOP = "import sys; from benchmarks.bare_loop import tune; tune(*sys.argv[1:])"
ADAPT = "import sys; sys.argv[0] = 'maskvote-client'; from client.cli import main; main()"
ENDING = """
import os, sys
status = 0
try:
    {code}
except SystemExit as ended:
    status = ended.code
sys.stdout.flush()
sys.stderr.flush()
os._exit(status)
"""
"""Runs code, and ends the process before the interpreter takes itself apart."""


def draw(folder: Path, per_class: Mapping[str, int]) -> Path:
    """A task of noise around one random picture a class."""
    lot = np.random.default_rng(0)
    for label in range(CLASSES):
        picture = lot.integers(40, 216, (64, 64, 3))
        for part, count in per_class.items():
            place = folder / part / f"class-{label}"
            place.mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(picture + lot.normal(0, 40, picture.shape), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")
    return folder


def prepared(directory: Path, ground: Ground, task: Task) -> SubNetwork:
    """The files that a device is given, and the sub-network in them."""
    request = describe(ground.offer, task, Budget(parameters=PARAMETERS), "smsp", "0" * 32)
    with Library.open(ground.library) as library:
        assignment = Coordinator(library, ground.weights).assign(request)
    seal(directory / "offer", *encode_offer(ground.offer))
    seal(directory / "assignment", *encode_assignment(assignment))
    return assignment.subnetwork


def activation_bytes(subnetwork: SubNetwork, task: Task) -> int:
    """What autograd keeps of one batch for the backward pass, each storage once, weights not counted."""
    network = subnetwork.network(CLASSES).train()
    own = {t.untyped_storage().data_ptr() for t in network.state_dict().values()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = on_device_of(network, task.train.batch(torch.arange(BATCH)))
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = torch.nn.functional.cross_entropy(network(batch), task.train.labels[:BATCH])
    del loss
    return sum(kept.values())


def peaks(code: str, words: Sequence[str] = ()) -> dict[str, Any]:
    """Peak bytes of a process that runs this code, its exit status, and the last line that it said."""
    process = subprocess.Popen(
        [sys.executable, "-c", ENDING.format(code=code), *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    found: dict[str, Any] = {"resident": 0, "anonymous": 0}
    names = {"resident": "VmHWM", "anonymous": "RssAnon"}
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        text = status.read_text() if status.exists() else ""
        for name, field in names.items():
            if line := re.search(rf"{field}:\s+(\d+) kB", text):
                found[name] = max(found[name], 1024 * int(line[1]))
        time.sleep(0.001)
    said = process.stderr.read().strip() if process.stderr else ""
    return {**found, "status": process.returncode, "said": said.splitlines()[-1] if said else ""}


def measure(iterations: int) -> dict[str, Any]:
    """All numbers."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        ground = prepare(directory, entries=12)
        data = draw(directory / "data", {"train": 40, "val": 10})
        task = load_folder(data, ground.backbone)
        subnetwork = prepared(directory, ground, task)
        network_bytes = sum(t.nbytes for t in subnetwork.weights.values())
        activations = activation_bytes(subnetwork, task)
        words = [
            "adapt", "--data", str(data), "--offer", str(directory / "offer"), "--assignment",
            str(directory / "assignment"), "--out", str(directory / "out"), "--iterations",
            str(iterations),
        ]  # fmt: skip
        bare = peaks(BARE)
        limit = 3 * network_bytes + activations
        free = bare["resident"] / 1e6 + FREE_MEGABYTES
        least = bare["resident"] / 1e6 + 115
        ways: dict[str, list[str]] = {
            "adapt": [],
            "micro-batch 8": ["--micro-batch", "8"],
            f"{FREE_MEGABYTES} MB free": ["--max-memory", f"{free:.0f}"],
            "115 MB free": ["--max-memory", f"{least:.0f}"],
            "50 MB free": ["--max-memory", f"{bare['resident'] / 1e6 + 50:.0f}"],
        }
        measured = {
            "bare loop": peaks(BARE_LOOP, [str(directory), *map(str, (CLASSES, BATCH, iterations))])
        }
        measured |= {way: peaks(ADAPT, [*words, *more]) for way, more in ways.items()}
    return {
        "parameters": subnetwork.parameters,
        "network_bytes": network_bytes,
        "activation_bytes": activations,
        "limit_bytes": limit,
        "torch": torch.__version__,
        "bare": bare,
        "options": {"bare loop": [], **ways},
        "measured": measured,
        "above_bare": {
            way: {kind: found[kind] - bare[kind] for kind in ("resident", "anonymous")}
            for way, found in measured.items()
        },
    }


@click.command()
@click.option("--iterations", default=6, show_default=True)
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write the record here.")
def main(iterations: int, out: Path | None) -> None:
    """Measure, and compare with three networks and the activations of a batch."""
    torch.set_num_threads(1)
    record = measure(iterations)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, (json.dumps(record, indent=1) + "\n").encode())
    limit = record["limit_bytes"]
    show(
        f"MB above a bare import of torch and timm ({record['bare']['resident'] / 1e6:.0f} MB, of which "
        f"{record['bare']['anonymous'] / 1e6:.0f} anonymous); three networks and the activations of "
        f"{BATCH} images are {limit / 1e6:.0f} MB",
        ["way", "options", "resident", "anonymous", "of the limit", "what it said"],
        [
            [
                way, " ".join(record["options"][way]), f"{above['resident'] / 1e6:.0f}",
                f"{above['anonymous'] / 1e6:.0f}", f"{above['resident'] / limit:.2f}",
                record["measured"][way]["said"],
            ]
            for way, above in record["above_bare"].items()
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
