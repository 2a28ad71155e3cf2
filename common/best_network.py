"""Best network: the one that training images prefer which were held out from tuning."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from common.backbone import Backbone
from common.mask import Mask, Scores
from common.rebuild import rebuild

PREFIX, KEPT, SCORES = "best.", "best-kept", "best-scores"
"""Names of the tensors in `BestNetwork.stored`: a prefix, and two of their own."""
COMPARING_SHARE, ENOUGH, FEWEST = 0.1, 4, 3
"""How many training images of a class choose between networks, each being one less to tune on: this
share, but of small classes a fifth up to ENOUGH, and one of a class that has FEWEST."""


def held_out(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Which training images choose between networks, bool (N,), drawn at random: tuning never sees them.

    A tenth of each class; of small classes, a fifth up to ENOUGH images, and at least one of a class that
    has FEWEST. Shares are rounded down. `labels` is int64 (N,).
    """
    held = torch.zeros(len(labels), dtype=torch.bool)
    order = torch.randperm(len(labels), generator=generator)
    by_class = order[labels[order].argsort(stable=True)]
    start = 0
    for images in labels.bincount().tolist():
        fifth = min(images // 5, ENOUGH)
        count = max(int(images * COMPARING_SHARE), fifth, int(images >= FEWEST))
        held[by_class[start : start + count]] = True
        start += images
    return held


@dataclass
class BestNetwork:
    """The best network so far: after how many iterations, its loss on held-out images, its units.

    `scores` is how its units rank, None where no iteration ranked them. Of two networks of one size the
    one of the lower loss is better; of equal ones, and where a loss is NaN, the later one.
    """

    mask: Mask
    iterations: int = 0
    loss: float = math.inf
    scores: Scores | None = None
    _tensors: dict[str, Tensor] = field(default_factory=dict)

    def offer(
        self, network: nn.Module, mask: Mask, scores: Scores | None, iterations: int, loss: float
    ) -> None:
        """Copy the network's tensors if it is better, or of another size than the best one so far."""
        if mask.counts == self.mask.counts and loss > self.loss:
            return
        self.mask, self.scores, self.iterations, self.loss = mask, scores, iterations, loss
        for name, tensor in network.state_dict().items():
            place = self._tensors.get(name)
            if place is None or place.shape != tensor.shape:
                self._tensors[name] = tensor.clone()
            else:
                place.copy_(tensor)

    def network(self, backbone: Backbone) -> nn.Module:
        """The network, in evaluation mode. It holds the tensors themselves."""
        return rebuild(backbone, self._tensors, mask=self.mask)

    def stored(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """What has to be kept of it: tensors, which are not copied, and words."""
        tensors = {f"{PREFIX}{name}": tensor for name, tensor in self._tensors.items()}
        tensors[KEPT] = torch.from_numpy(self.mask.kept.copy())
        if self.scores is not None:
            rows = [self.scores[name] for name in self.mask]
            tensors[SCORES] = torch.from_numpy(np.concatenate([np.empty(0), *rows]))
        return tensors, {"best": json.dumps({"iterations": self.iterations, "loss": self.loss})}

    def go_on(self, tensors: Mapping[str, Tensor], words: Mapping[str, str]) -> None:
        """Become what `stored` gave. KeyError, ValueError or an InputError for anything else."""
        told = json.loads(words["best"])
        self.iterations, self.loss = int(told["iterations"]), float(told["loss"])
        structure = self.mask.structure
        self.mask = Mask(structure, tensors[KEPT].numpy())
        self._tensors = {
            name.removeprefix(PREFIX): tensor.clone()
            for name, tensor in tensors.items()
            if name.startswith(PREFIX)
        }
        if SCORES in tensors:
            rows, starts = tensors[SCORES].numpy(), structure.starts
            self.scores = {
                group.name: rows[starts[group.name] : starts[group.name] + group.units].copy()
                for group in structure.groups
            }
