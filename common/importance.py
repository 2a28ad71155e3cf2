"""How important each unit is: to the backbone (magnitude), or to a task (first-order Taylor)."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from common.backbone import Weights
from common.gradients import add_gradients
from common.images import LabelledImages, batches
from common.mask import Mask, Scores
from common.structure import Structure
from common.tuning_settings import Precision

RANKING_BATCHES = 10
"""Mini-batches for scores that no tuning gives: enough for their order to settle."""


def magnitude(weights: Weights, structure: Structure, order: int = 1) -> dict[str, np.ndarray]:
    """Per unit the L1 (or L2) norm of the weights that make it, per value (Li et al., 2017).

    What makes a unit is its rows in weights of two or more dimensions; what reads it does not count.
    """
    scores = {}
    for group in structure.groups:
        total = np.zeros(group.units)
        for member in group.members:
            tensor = weights[member.tensor]
            if member.reads or tensor.ndim < 2:
                continue
            rows = tensor.detach().double().movedim(member.dim, 0).flatten(1).abs().pow(order)
            own = member.unit_of >= 0
            np.add.at(total, member.unit_of[own], rows.mean(1).cpu().numpy()[own])
        scores[group.name] = total ** (1 / order)
    return scores


class Taylor:
    """First-order Taylor importance of the units a network holds (Molchanov et al., 2019).

    A unit's output reaches the loss only through the weights that read it, so the sum of weight x
    gradient over them is the loss's derivative along "this unit fades out": what cutting it would
    cost, to first order. Its absolute value is averaged over mini-batches.
    """

    def __init__(self, network: nn.Module, mask: Mask) -> None:
        self._mask = mask
        parameters = dict(network.named_parameters())
        structure = mask.structure
        keep_of = np.append(mask.kept, True)
        self._readers = []
        for group in structure.groups:
            for member in group.members:
                if not member.reads:
                    continue
                all_ids = dict(structure.dims[member.tensor])[member.dim]
                held = keep_of[all_ids]
                own = np.where(
                    member.unit_of >= 0,
                    structure.starts[group.name] + member.unit_of,
                    structure.units,
                )[held]
                self._readers.append(
                    (parameters[member.tensor], member.dim, torch.from_numpy(own.astype(np.int64)))
                )
        self._total = torch.zeros(structure.units, dtype=torch.float64)
        self._batches = 0

    def observe(self, *_: int) -> None:
        """Take in the gradients of one mini-batch."""
        derivative = torch.zeros(self._mask.structure.units + 1, dtype=torch.float64)
        for parameter, dim, units in self._readers:
            if parameter.grad is not None:
                product = (parameter.detach() * parameter.grad).movedim(dim, 0).flatten(1).sum(1)
                derivative.index_add_(0, units, product.double().cpu())
        self._total += derivative[:-1].abs()
        self._batches += 1

    @property
    def totals(self) -> tuple[torch.Tensor, int]:
        """The sum over the batches, float64 (units,), and how many they are."""
        return self._total, self._batches

    @totals.setter
    def totals(self, totals: tuple[torch.Tensor, int]) -> None:
        self._total, self._batches = totals

    def scores(self) -> Scores:
        """The mean over the batches; -inf for units that the network does not hold."""
        mean = (self._total / max(self._batches, 1)).numpy().copy()
        mean[~self._mask.kept] = -np.inf
        structure = self._mask.structure
        return {
            g.name: mean[structure.starts[g.name] : structure.starts[g.name] + g.units]
            for g in structure.groups
        }


def rank(
    network: nn.Module,
    mask: Mask,
    images: LabelledImages,
    batch_size: int,
    generator: torch.Generator,
    count: int = RANKING_BATCHES,
    *,
    micro_batch: int = 0,
    precision: Precision = "fp32",
) -> Scores:
    """First-order Taylor scores over `count` mini-batches, the network left as it is.

    `micro_batch` and `precision` are as in `add_gradients`.
    """
    taylor = Taylor(network, mask)
    network.eval()
    for _, indices in zip(range(count), batches(len(images), batch_size, generator), strict=False):
        network.zero_grad(set_to_none=True)
        add_gradients(network, images, indices, micro_batch, precision)
        taylor.observe()
    network.zero_grad(set_to_none=True)
    return taylor.scores()
