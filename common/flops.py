"""What a network computes for one image, counted while it runs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def counted_flops(network: nn.Module, input_size: Sequence[int]) -> int:
    """Floating-point operations of one image (C, H, W) in convolutions and products: two for every
    multiplication.

    Attention counts as the two products that it is: torch takes it for one operation on some processors
    and in some releases, and its counter does not know each of these.
    """
    with (
        FlopCounterMode(display=False) as counter,
        sdpa_kernel(SDPBackend.MATH),
        torch.inference_mode(),
    ):
        network(torch.zeros(1, *input_size))
    return int(counter.get_total_flops())
