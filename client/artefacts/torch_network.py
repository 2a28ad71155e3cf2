"""A saved network as it is run by torch itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from client.artefacts.runnable import Logits
from client.export import SavedNetwork, load_network
from common.fitting import on_device_of


def opened(path: Path, threads: int) -> SavedNetwork:
    """The network in a file, run with so many threads (0: torch's own number). Errors: `load_network`."""
    if threads:
        torch.set_num_threads(threads)
    return load_network(path)


def logits_of(network: nn.Module) -> Logits:
    """What runs a network."""

    def logits(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(on_device_of(network, torch.from_numpy(images))).numpy()

    return logits
