"""Directions: along which a probe's features differ most, found without a single image of anybody's.

Noise is spent on every number that is released, so a private signature releases few: its features'
coordinates along these directions. They follow from the probe alone, hence tell nothing of a task.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from common.errors import SignatureError
from common.fitting import BATCH, all_features
from common.privacy import DIRECTIONS

DRAWN_IMAGES = 256
"""How many images are drawn: more find hardly better directions."""
TINT = 0.3
"""How much the channels of a drawn image differ."""


class DrawnImages:
    """Images of noise as smooth as photographs are (amplitude 1/frequency); satisfies LabelledImages.

    Always the same ones of a size (C, H, W), with a standard deviation of 1, as normalised images have.
    """

    def __init__(self, size: Sequence[int], count: int = DRAWN_IMAGES) -> None:
        self.labels = torch.zeros(count, dtype=torch.int64)
        self._channels, *self._sides = size
        height, width = self._sides
        frequencies = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
        frequencies[0, 0] = 1 / max(height, width)
        self._amplitudes = 1 / frequencies

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> Tensor:
        """Float32 (B, C, H, W) of the images at int64 (B,)."""
        return torch.from_numpy(np.stack([self._image(int(index)) for index in indices]))

    def _image(self, index: int) -> np.ndarray:
        generator = np.random.default_rng(index)
        white = generator.standard_normal((self._channels, *self._sides))
        smooth = np.fft.irfft2(np.fft.rfft2(white) * self._amplitudes, s=self._sides)
        mixture = 1 + TINT * generator.standard_normal((self._channels, self._channels))
        image = np.tensordot(mixture, smooth, axes=1)
        return (image / max(image.std(), 1e-12)).astype(np.float32)


def principal_directions(network: nn.Module, size: Sequence[int], batch: int = BATCH) -> np.ndarray:
    """Orthonormal float64 (d, D): the directions along which its features of drawn images differ most.

    d is 64, or D where features are narrower. `batch` images are in memory at a time.
    SignatureError if the features are not finite.
    """
    rows = all_features(network, DrawnImages(size), batch=batch).double().numpy()
    if not np.isfinite(rows).all():
        raise SignatureError("the probe's features are NaN or infinite; fetch the probe again")
    return np.linalg.svd(rows - rows.mean(0), full_matrices=False)[2][:DIRECTIONS]
