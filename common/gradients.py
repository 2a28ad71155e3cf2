"""Gradients of a mini-batch, computed at once or a few images at a time."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.fitting import on_device_of
from common.images import LabelledImages
from common.tuning_settings import Precision


def parts_of(indices: Tensor, micro_batch: int) -> tuple[Tensor, ...]:
    """A mini-batch in parts of at most `micro_batch` images, as equal as can be; 0 leaves it whole."""
    if not 0 < micro_batch < len(indices):
        return (indices,)
    return indices.tensor_split(-(-len(indices) // micro_batch))


def add_gradients(
    network: nn.Module,
    images: LabelledImages,
    indices: Tensor,
    micro_batch: int = 0,
    precision: Precision = "fp32",
) -> float:
    """Add the gradients of a mini-batch's mean loss to those that are there; that loss.

    The mini-batch goes through the network in parts (see `parts_of`), of which one at a time is in
    memory. The sum is the whole mini-batch's gradient where the network takes every image by itself:
    in evaluation mode, or without batch norm. In training mode batch norm normalises by each part. With
    bf16, layers that gain by it compute in half the bits; weights, gradients and the loss are float32.
    """
    total = 0.0
    for part in parts_of(indices, micro_batch):
        share = len(part) / len(indices)
        batch = on_device_of(network, images.batch(part))
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits = network(batch)
        loss = functional.cross_entropy(logits.float(), images.labels[part].to(logits.device))
        (loss * share if share < 1 else loss).backward()
        total += loss.item() * share
    return total
