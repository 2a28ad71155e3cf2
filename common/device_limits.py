"""Device limits: how one adaptation keeps to the memory and the seconds that it is allowed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from common.backbone import Backbone
from common.deadline import Deadline
from common.fine_tune import Diverged, FineTuneSettings
from common.fitting import BATCH, Fitted, classified, on_device_of
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
    _reserved: float = 0.0
    _untuned: dict[str, Tensor] | None = None
    _loss: float = float("nan")

    @classmethod
    def of(
        cls, network: nn.Module, backbone: Backbone, task: Task, settings: FineTuneSettings
    ) -> DeviceLimits:
        """The limits from now on. InputError where not even one image at a time fits in memory."""
        seconds = settings.max_seconds
        limits = cls(settings, deadline=None if seconds is None else Deadline.after(seconds))
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
            classified(torch.randn(rows, width, dtype=torch.float64), images.labels[:rows], classes)

        limit.check(classifier_alone, "fitting the classifier")
        weights = sum(p.numel() * p.element_size() for p in network.parameters())
        copies = 1 + (self.deadline is not None)  # the momentum, and the untuned network

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

    def begin_tuning(
        self, network: nn.Module, fitted: Fitted, seconds: Mapping[str, float], steps: int
    ) -> bool:
        """Whether there is time for so many iterations at least, besides fitting and judging once more.

        `seconds` is what both took the first time. The network as it is now is kept aside, in case
        that tuning makes it worse. With no deadline, there always is time.
        """
        if self.deadline is None:
            return self.settings.iterations > 0
        once = seconds["fit"] + seconds["evaluate"]
        batch = min(self.settings.batch_size, len(fitted.labels))
        self.step_seconds = STEP_PASSES * batch * seconds["fit"] / (2 * len(fitted.labels))
        ranking = RANKING_BATCHES * self.step_seconds * (self.settings.tuned == "head")
        pauses = RESERVED_SHARE * (self.deadline.end - self.deadline.began)
        self._reserved = RESERVE * once + ranking + pauses
        if self.settings.iterations == 0:
            return False
        if self.deadline.left - self._reserved < steps * self.step_seconds:
            needed = self.deadline.spent + self._reserved + steps * self.step_seconds
            self.remarks.append(
                f"{self.settings.max_seconds:g} seconds are too short to tune in: the classifier was "
                f"fitted and no more, which took {self.deadline.spent:.1f}; allow at least {needed:.0f}"
            )
            return False
        self._loss = fitted.held_out_loss
        self._untuned = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        return True

    @property
    def tuning_deadline(self) -> Deadline | None:
        """From now until what comes after tuning has to begin."""
        return None if self.deadline is None else Deadline.after(self.deadline.left - self._reserved)

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

    def end_tuning(self, network: nn.Module, fitted: Fitted, iterations: int) -> bool:
        """Whether the tuned network is kept; else the untuned one's tensors are put back into it.

        Judged by the cross-entropy of training images, each by a classifier fitted to others. Tuning
        has seen them all, so that this finds what it wrecked, not what it learnt by heart. Without a
        deadline, or where the network was pruned meanwhile, it is always kept.
        """
        if self.deadline is not None and 0 < iterations < self.settings.iterations:
            self.remarks.append(
                f"{iterations} of {self.settings.iterations} iterations were done in the "
                f"{self.settings.max_seconds:g} seconds allowed"
            )
        untuned, self._untuned = self._untuned, None
        if untuned is None or not _same_shapes(network, untuned):
            return True
        loss = fitted.held_out_loss
        if loss <= self._loss:
            return True
        network.load_state_dict(untuned)
        self.remarks.append(
            f"tuning made the network worse (loss {loss:.3f}, fitted alone {self._loss:.3f}), "
            "so the fitted one was kept; allow more seconds, or a smaller learning rate"
        )
        return False

    def give_up_tuning(self, network: nn.Module, diverged: Diverged) -> None:
        """Put the untuned tensors back into the network that tuning began with, and tell why.

        Without a deadline none were kept aside: then what is given is raised.
        """
        untuned, self._untuned = self._untuned, None
        if untuned is None:
            raise diverged
        network.load_state_dict(untuned)
        self.remarks.append(f"the fitted network was kept, as {diverged}")


def forward_at_once(
    limit: MemoryLimit, network: nn.Module, images: LabelledImages, doing: str, later_bytes: int = 0
) -> int:
    """How many images fit in memory at once where no gradient is computed; errors as of MemoryLimit."""
    network.eval()

    def forward(count: int) -> None:
        with torch.inference_mode():
            network(on_device_of(network, images.batch(torch.arange(count) % len(images))))

    return limit.images_at_once(forward, min(BATCH, len(images)), doing, later_bytes)


def _same_shapes(network: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
    return all(tensor.shape == tensors[name].shape for name, tensor in network.state_dict().items())
