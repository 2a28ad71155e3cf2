"""A server to measure: `maskvote-server serve` in its own process, with a library of random entries."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.torch import save_file

from common.backbone import Backbone, Weights, weights_digest
from common.budget import Budget
from common.exchange import Contribution, Offer, TaskDescription
from common.importance import magnitude
from common.mask import Mask
from common.probe import Probe
from common.proto_codec import encode_contribution, encode_task_description
from common.signature import TaskSignature
from common.subnetwork import SubNetwork
from server.budget import allot
from server.library import Library, seed_entry

CLASSES = 10
KEEP_RATIO = 0.1
PROBE_KEEP_RATIO = 0.05
UNLIMITED = (
    "--calls-per-minute", "1000000000", "--bytes-per-minute", "4000000000",
    "--concurrent-calls", "1000000",
)  # fmt: skip


@dataclass(frozen=True)
class Ground:
    """What is served: a ResNet-18 of random weights at 64 pixels, and the files it lies in."""

    library: Path
    checkpoint: Path
    backbone: Backbone
    weights: Weights
    offer: Offer

    def signature(self, lot: np.random.Generator) -> TaskSignature:
        """A random task of ten classes."""
        means = lot.normal(size=(CLASSES, len(self.offer.probe.center))).astype(np.float16)
        return TaskSignature(
            self.offer.probe.digest, means, lot.integers(5, 50, size=CLASSES, dtype=np.int32)
        )

    def task(self, lot: np.random.Generator) -> TaskDescription:
        """A request of a device with such a task."""
        request_id = lot.bytes(16).hex()
        return TaskDescription(request_id, self.signature(lot), Budget(keep_ratio=KEEP_RATIO))

    def request(self, lot: np.random.Generator) -> bytes:
        """The message of such a request."""
        return encode_task_description(self.task(lot))


def answer(mask: Mask, request_id: str, target: Sequence[int]) -> bytes:
    """The message of a contribution that an assignment allows."""
    scores = {name: np.where(mask[name], 1.0, -1.0) for name in mask}
    kept = Mask.keep_top(mask.structure, scores, target)
    return encode_contribution(Contribution(request_id, kept, 0.25, 0.75, 50))


def prepare(directory: Path, entries: int, seed: int = 0) -> Ground:
    """Found a library of so many random entries."""
    lot = np.random.default_rng(seed)
    torch.manual_seed(seed)
    backbone = Backbone.from_timm("resnet18", image_size=64)
    weights = dict(timm.create_model("resnet18").state_dict())
    structure = backbone.structure()
    scores = magnitude(weights, structure)

    def small(keep_ratio: float) -> Mask:
        counts = allot(structure, Budget(keep_ratio=keep_ratio), CLASSES)
        return Mask.keep_top(structure, scores, counts)

    probe = Probe(
        SubNetwork.of(backbone, weights, small(PROBE_KEEP_RATIO)), np.zeros(512, dtype=np.float32)
    )
    offer = Offer(backbone, structure, probe)
    ground = Ground(
        directory / "library.db", directory / "backbone.safetensors", backbone, weights, offer
    )
    save_file(weights, ground.checkpoint)
    with Library.create(ground.library, offer, weights_digest(weights)) as library:
        counts = allot(structure, Budget(keep_ratio=KEEP_RATIO), CLASSES)
        for number in range(entries):
            random = {group.name: lot.random(group.units) for group in structure.groups}
            mask, signature = Mask.keep_top(structure, random, counts), ground.signature(lot)
            library.seed(seed_entry(str(number), signature), signature, mask,
                         accuracy_before=0.25, accuracy_after=0.5, iterations=10)  # fmt: skip
    return ground


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@dataclass(frozen=True)
class Server:
    """A running server: where it listens, and its process."""

    address: str
    process: subprocess.Popen

    def memory_kilobytes(self, what: str = "VmRSS") -> int:
        """Resident memory of the process; VmHWM is its peak."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{what}:\s+(\d+) kB", status)[1])  # type: ignore[index]

    def cpu_seconds(self) -> float:
        """Processor time of the process so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100


@contextmanager
def serving_process(ground: Ground, *options: str, log: Path | None = None) -> Iterator[Server]:
    """`maskvote-server serve` on a free port of the loopback, for any device; ended with SIGTERM."""
    command = [
        sys.executable, "-m", "server", "serve", str(ground.library), "--checkpoint",
        str(ground.checkpoint), "--address", "127.0.0.1:0", "--anonymous", *UNLIMITED, *options,
    ]  # fmt: skip
    log = log or ground.library.with_suffix(".log")
    with log.open("w+") as lines:
        process = subprocess.Popen(command, stderr=lines)
        try:
            yield Server(_address(process, log), process)
        finally:
            process.terminate()
            process.wait(60)


def _address(process: subprocess.Popen, log: Path) -> str:
    while process.poll() is None:
        if found := re.search(r"is served at (\S+)", log.read_text()):
            return found[1]
        time.sleep(0.1)
    raise RuntimeError(f"the server ended: {log.read_text()[-2000:]}")
