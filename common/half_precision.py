"""Half precision: weights as they travel, in half the bytes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

DIMENSIONS = 2
"""A tensor of fewer is few bytes, and a norm's scale, shift or statistic may need them all."""
ROUNDING = 2.0**-11
"""How far float16 moves a number within its range, as a share of it."""


def in_half_precision(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights, with float16 in place of float32 for every tensor of two or more dimensions.

    These are nearly all of a network's bytes. A tensor stays float32 where rounding would move it, as a
    whole, by more than 1/2048 of its length: one beyond float16's range, or of numbers that are too small
    for it.
    """
    return {name: _halved(tensor) for name, tensor in weights.items()}


def in_single_precision(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `in_half_precision` gave, with float32 in place of float16, of the same values."""
    return {
        name: tensor.float() if tensor.dtype == torch.float16 and tensor.ndim >= DIMENSIONS else tensor
        for name, tensor in weights.items()
    }


def _halved(tensor: Tensor) -> Tensor:
    if tensor.dtype != torch.float32 or tensor.ndim < DIMENSIONS:
        return tensor
    whole = tensor.detach()
    half = whole.half()
    moved = torch.linalg.vector_norm(half.float() - whole)
    # Infinity or NaN is no distance within the limit either.
    return half if moved <= ROUNDING * torch.linalg.vector_norm(whole) else tensor
