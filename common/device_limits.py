"""Device limits: how one adaptation keeps to the memory and the seconds that it is allowed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from common.backbone import Backbone
from common.deadline import Deadline
from common.fine_tune import FineTuneSettings
from common.fitting import BATCH, choose_classifier, on_device_of
from common.gradients import add_gradients
from common.images import LabelledImages
from common.importance import RANKING_BATCHES
from common.memory_limit import MemoryLimit
from common.process_memory import MEGABYTE
from common.task_data import Task

FEATURE_BYTES = 4
"""Of a feature's value, as the network gives it."""
STEP_PASSES = 4
"""What a step takes at most, in forward passes of its images: backward is two, and some is overhead."""
RESERVE = 1.2
"""How much more time is reserved for the last fit than the first one took."""
RESERVED_SHARE = 0.05
"""Of the time allowed, reserved besides: the system may have other work to do just then."""


@dataclass
class DeviceLimits:
    """What is left of the limits that an adaptation's settings have, and what they came to.

    `settings` has the micro-batch that fits in memory; `batch` is how many images fit where no gradient
    is computed. `remarks` are sentences for whoever waits, about what the limits changed.
    """

    settings: FineTuneSettings
    batch: int = BATCH
    deadline: Deadline | None = None
    remarks: list[str] = field(default_factory=list)
    step_seconds: float = 0.0
    tuned_seconds: float = 0.0
    """How long tuning took in processes before this one."""
    _reserved: float = 0.0

    @classmethod
    def of(
        cls,
        network: nn.Module,
        backbone: Backbone,
        task: Task,
        settings: FineTuneSettings,
        spent: float = 0.0,
    ) -> DeviceLimits:
        """The limits from now on, `spent` seconds of which are over.

        InputError where not even one image at a time fits in memory.
        """
        seconds = settings.max_seconds
        limits = cls(settings, deadline=None if seconds is None else Deadline.after(seconds - spent))
        if settings.max_memory is not None:
            limit = MemoryLimit(settings.max_memory)
            limits._fit_in_memory(limit, network, backbone, task.train, len(task.classes))
        return limits

    def _fit_in_memory(
        self,
        limit: MemoryLimit,
        network: nn.Module,
        backbone: Backbone,
        images: LabelledImages,
        classes: int,
    ) -> None:
        classifier: Any = network.get_submodule(backbone.classifier)
        width = classifier.weight.shape[1]
        rows = min(len(images), self.settings.fit_images)

        def classifier_alone() -> None:
            all_rows = torch.ones(rows, dtype=torch.bool)
            weights = torch.ones(classes, dtype=torch.float64)
            drawn = torch.randn(rows, width, dtype=torch.float64)
            choose_classifier(drawn, images.labels[:rows], classes, weights, all_rows)

        limit.check(classifier_alone, "fitting the classifier")
        weights = sum(p.numel() * p.element_size() for p in network.parameters())
        copies = 2  # the momentum, and the best network so far

        def gradients(count: int) -> None:
            chosen = torch.arange(count) % len(images)
            add_gradients(network, images, chosen, precision=self.settings.precision)

        whole = min(self.settings.batch_size, len(images))
        most = min(self.settings.micro_batch or whole, whole)
        micro_batch = limit.images_at_once(gradients, most, "tuning", later_bytes=copies * weights)
        network.zero_grad(set_to_none=True)
        self.batch = forward_at_once(limit, network, images, "fitting", FEATURE_BYTES * rows * width)
        if micro_batch < whole:
            self.settings = replace(self.settings, micro_batch=micro_batch)
        if micro_batch < most:
            self.remarks.append(
                f"{limit.bytes / MEGABYTE:,.0f} MB are enough for {micro_batch} images at a time of the "
                f"{whole} in a batch, so gradients were averaged over parts"
            )

    def reserve(self, seconds: Mapping[str, float], looked_at: int) -> None:
        """Reserve time for fitting, ranking and judging after tuning.

        `seconds` is what the steps took so far, with `looked_at` images. Without a deadline there is
        nothing to reserve.
        """
        if self.deadline is None:
            return
        once = seconds["fit"] + seconds["evaluate"]
        batch = min(self.settings.batch_size, looked_at)
        self.step_seconds = STEP_PASSES * batch * seconds["fit"] / (2 * looked_at)
        ranking = RANKING_BATCHES * self.step_seconds
        pauses = RESERVED_SHARE * (self.deadline.end - self.deadline.began)
        self._reserved = RESERVE * once + ranking + pauses

    def time_to_tune(self, steps: int) -> bool:
        """Whether there are iterations to do, and time for so many of them at least; see `reserve`."""
        if self.settings.iterations == 0:
            return False
        if self.deadline is None or self.deadline.left - self._reserved >= steps * self.step_seconds:
            return True
        needed = self.deadline.spent + self._reserved + steps * self.step_seconds
        self.remarks.append(
            f"{self.settings.max_seconds:g} seconds are too short to tune in: the classifier was "
            f"fitted and no more, which took {self.deadline.spent:.1f}; allow at least {needed:.0f}"
        )
        return False

    @property
    def tuning_deadline(self) -> Deadline | None:
        """Until what comes after tuning has to begin; it began when tuning did, in whichever process."""
        if self.deadline is None:
            return None
        rest = Deadline.after(self.deadline.left - self._reserved)
        return Deadline(rest.began - self.tuned_seconds, rest.end)

    @property
    def time_to_evaluate(self) -> bool:
        """Whether an accuracy on the way would not take the time of what has to be done in the end."""
        return self.deadline is None or self.deadline.left > 2 * self._reserved

    @property
    def ranking_batches(self) -> int:
        """Mini-batches that there is time to rank units by where nothing was tuned; at least one."""
        if self.deadline is None:
            return RANKING_BATCHES
        return max(1, min(RANKING_BATCHES, int(self.deadline.left / max(self.step_seconds, 1e-9))))

    def remark_on_time(self, iterations: int) -> None:
        """Say so where time was too short for all iterations."""
        if self.deadline is not None and 0 < iterations < self.settings.iterations:
            self.remarks.append(
                f"{iterations} of {self.settings.iterations} iterations were done in the "
                f"{self.settings.max_seconds:g} seconds allowed"
            )


def forward_at_once(
    limit: MemoryLimit, network: nn.Module, images: LabelledImages, doing: str, later_bytes: int = 0
) -> int:
    """How many images fit in memory at once where no gradient is computed; errors as of MemoryLimit."""
    network.eval()

    def forward(count: int) -> None:
        with torch.inference_mode():
            network(on_device_of(network, images.batch(torch.arange(count) % len(images))))

    return limit.images_at_once(forward, min(BATCH, len(images)), doing, later_bytes)
