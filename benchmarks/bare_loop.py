"""A bare loop: what PyTorch itself takes to tune a sub-network, for benchmarks to hold adapt against."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn import functional

from common.envelope import unseal
from common.fitting import on_device_of
from common.proto_codec import decode_assignment, decode_offer


def tune(directory: str, classes: str, batch: str, iterations: str) -> None:
    """Tune the network of the files `offer` and `assignment` on batches of noise, and do nothing else."""
    torch.set_num_threads(1)
    structure = decode_offer(*unseal(Path(directory) / "offer")).structure
    subnetwork = decode_assignment(*unseal(Path(directory) / "assignment"), structure).subnetwork
    network = subnetwork.network(int(classes)).train()
    labels = torch.arange(int(batch)) % int(classes)
    optimiser = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, nesterov=True)
    for _ in range(int(iterations)):
        images = on_device_of(network, torch.randn(len(labels), *subnetwork.backbone.input_size))
        optimiser.zero_grad()
        functional.cross_entropy(network(images), labels).backward()
        optimiser.step()
