"""Contest: one task, one size, one way of tuning: all that different ways must have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from common.adaptation import Adapted, adapt_network
from common.backbone import Backbone, Weights
from common.importance import magnitude
from common.mask import Mask, Scores
from common.rebuild import rebuild
from common.structure import Structure
from common.subnetwork import cut
from common.task_data import Task
from common.tuning_settings import FineTuneSettings

Cut = Callable[[Mask], Mapping[str, torch.Tensor]]
"""The tensors that a mask leaves, without the classifier: cut out of the backbone, or healed."""


@dataclass(frozen=True)
class Contest:
    """One task, so many units per group, so many iterations on it."""

    backbone: Backbone
    weights: Weights
    structure: Structure
    task: Task
    counts: tuple[int, ...]
    settings: FineTuneSettings
    seed: int
    evaluate_at: tuple[int, ...]
    cut: Cut | None = None
    """Where tensors come from; None: the backbone's weights."""
    device: str = "cpu"

    @property
    def generator(self) -> torch.Generator:
        """The same randomness for every way."""
        return torch.Generator().manual_seed(self.seed)

    @cached_property
    def importance(self) -> Scores:
        """The backbone's own: L1 magnitude."""
        return magnitude(self.weights, self.structure)

    def features_of(self) -> dict[str, torch.Tensor]:
        """The backbone's weights without its classifier: copies."""
        left = self.backbone.without_classifiers(self.weights)
        return {name: tensor.clone() for name, tensor in left.items()}

    def network(self, mask: Mask) -> torch.nn.Module:
        """The network that a mask cuts out, with a classifier of zeros for the task's classes."""
        tensors = cut(self.features_of(), mask) if self.cut is None else self.cut(mask)
        network = rebuild(self.backbone, tensors, len(self.task.classes), mask)
        return network.to(self.device)

    def adapt(self, mask: Mask, **options: Any) -> Adapted:
        """The network that a mask cuts out, adapted; `options` go to `adapt_network`."""
        settings = options.pop("settings", self.settings)
        return adapt_network(
            self.network(mask), self.backbone, mask, self.task, settings, self.generator,
            evaluate_at=self.evaluate_at, **options,
        )  # fmt: skip

    def top(self, scores: Scores) -> Mask:
        """The best-scored units, as many as the contest allows; ties go to the backbone's importance."""
        return Mask.keep_top(self.structure, scores, self.counts, tie_break=self.importance)
