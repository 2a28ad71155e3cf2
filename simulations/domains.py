"""Domains: the same classes as another camera sees them, so that tasks differ in more than classes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms import functional

Shift = Callable[[Tensor], Tensor]
"""Pixels uint8 (n, C, H, W) to pixels of the same shape; the same for the same pixels."""


def _grey(pixels: Tensor) -> Tensor:
    if pixels.shape[1] == 1:
        return pixels
    return functional.rgb_to_grayscale(pixels, num_output_channels=pixels.shape[1])


def _dark(pixels: Tensor) -> Tensor:
    return (pixels.float() * 0.35).to(torch.uint8)


def _blurred(pixels: Tensor) -> Tensor:
    # A sigma that follows the size: what is lost is the same at every resolution.
    side = pixels.shape[-1]
    return functional.gaussian_blur(pixels, kernel_size=2 * (side // 16) + 1, sigma=side / 40)


def _noisy(pixels: Tensor) -> Tensor:
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(pixels.numel()))
    return (pixels.float() + 30 * noise).clamp(0, 255).to(torch.uint8)


DOMAINS: dict[str, Shift] = {
    "plain": lambda pixels: pixels,
    "grey": _grey,
    "inverted": lambda pixels: 255 - pixels,
    "dark": _dark,
    "blurred": _blurred,
    "noisy": _noisy,
    "turned": lambda pixels: pixels.rot90(1, (2, 3)),
}
"""Name -> what it does to the pixels of all images of a task."""
