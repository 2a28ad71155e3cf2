"""What a device does: it describes its task, adapts the sub-network it gets, and gives a mask back.

torch is imported by the steps that compute: what is known of an adaptation can be told without it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from common.budget import Budget, Counts
from common.errors import MismatchError
from common.exchange import (
    Assignment,
    Contribution,
    Coordinator,
    Method,
    Offer,
    Origin,
    Receipt,
    TaskDescription,
)
from common.mask import Mask
from common.memory_limit import MemoryLimit
from common.privacy import Privacy
from common.structure import Structure
from common.task_data import Task
from common.tuning_file import TuningFile
from common.tuning_settings import FineTuneSettings, PruningSettings

if TYPE_CHECKING:
    import torch

    from common.adaptation import Adapted, Progress


def describe(
    offer: Offer,
    task: Task,
    budget: Budget,
    method: Method,
    request_id: str,
    privacy: Privacy | None = None,
    max_memory: float | None = None,
) -> TaskDescription:
    """The request that a device sends: its signature and its budget, nothing else of its data.

    With `privacy` the signature is a private one: each call draws its noise anew, and spends once more.
    `max_memory` is as in FineTuneSettings.
    """
    from common.device_limits import forward_at_once
    from common.fitting import BATCH

    probe, batch = offer.probe, BATCH
    if max_memory is not None:
        limit = MemoryLimit(max_memory)
        batch = forward_at_once(limit, probe.network, task.train, "describing the task")
    signature = probe.describe(task.train, len(task.classes), privacy, batch=batch)
    return TaskDescription(request_id, signature, budget, method)


def adapt_assignment(
    assignment: Assignment,
    task: Task,
    settings: FineTuneSettings,
    generator: torch.Generator,
    *,
    evaluate_at: Sequence[int] = (),
    progress: Progress | None = None,
    file: TuningFile | None = None,
) -> tuple[Adapted, Contribution]:
    """Adapt the sub-network to the task in a few iterations, and find the mask to give back.

    It goes on where `file` was written last. The mask and the iterations given back are those of the
    network that was kept.

    The assignment's own tensors are tuned: for another attempt it is decoded again. MismatchError if
    classes came or went since the task was described.
    Every unit that the device holds was ranked while it tuned; the contributed mask keeps the best,
    the assignment's target of every group. With rounds to do (MVP), the network itself is pruned
    down to them on the way.
    """
    from common.adaptation import adapt_network

    if len(task.classes) != assignment.classes:
        raise MismatchError(
            f"the network was assigned to a task of {assignment.classes} classes, the images are of "
            f"{len(task.classes)} ({', '.join(task.classes[:5])}); put the images back as they were, or "
            "describe the task again"
        )
    backbone = assignment.subnetwork.backbone
    adapted = adapt_network(
        assignment.subnetwork.network(len(task.classes)),
        backbone,
        assignment.subnetwork.mask,
        task,
        settings,
        generator,
        target=assignment.target,
        pruning=PruningSettings(rounds=assignment.rounds) if assignment.rounds else None,
        evaluate_at=evaluate_at,
        progress=progress,
        file=file,
    )
    held = adapted.pruned
    contribution = Contribution(
        request_id=assignment.request_id,
        mask=Mask.keep_top(held.mask.structure, held.scores, assignment.target),
        accuracy_before=adapted.before,
        accuracy_after=adapted.after,
        iterations=adapted.kept,
    )
    return adapted, contribution


@dataclass(frozen=True)
class Adaptation:
    """What adapting an assignment came to: what to give back, and what there is to say of it.

    `similarities` are those of the tasks that voted, the nearest first; `counts`, units per group, and
    `parameters` are those of the network that the device ends with; `healed` is whether the server had
    healed it; `accuracies` are by iterations done, `seconds` by step. `kept` is after how many iterations
    the network was as it was kept, and `held_out` how many training images chose it. `adapted` holds that
    network, in the process that adapted it.
    """

    contribution: Contribution
    origin: Origin
    similarities: tuple[float, ...]
    counts: Counts
    parameters: int
    accuracies: Mapping[int, float]
    seconds: Mapping[str, float]
    healed: bool = False
    kept: int = 0
    held_out: int = 0
    adapted: Adapted | None = None

    @classmethod
    def of(cls, assignment: Assignment, adapted: Adapted, contribution: Contribution) -> Adaptation:
        """What `adapt_assignment` gave."""
        return cls(
            contribution,
            assignment.origin,
            tuple(neighbour.similarity for neighbour in assignment.neighbours),
            counts=adapted.pruned.mask.counts,
            parameters=sum(parameter.numel() for parameter in adapted.network.parameters()),
            accuracies=adapted.accuracies,
            seconds=adapted.seconds,
            healed=assignment.subnetwork.healed,
            kept=adapted.kept,
            held_out=adapted.held_out,
            adapted=adapted,
        )


Step = TypeVar("Step", Offer, TaskDescription, Assignment, Adaptation, Receipt)


class Steps(Protocol):
    """What a device's steps came to, as far as they are done."""

    @property
    def offer(self) -> Offer | None:
        """What the server offered."""

    @property
    def description(self) -> TaskDescription | None:
        """What the server is asked."""

    @property
    def assignment(self) -> Assignment | None:
        """What it assigned."""

    @property
    def adaptation(self) -> Adaptation | None:
        """What adapting that came to."""

    @property
    def receipt(self) -> Receipt | None:
        """What the server gave for it."""

    @property
    def tuning_file(self) -> TuningFile | None:
        """Where tuning, the longest step, keeps how far it has come."""

    def keep(self, step: Step) -> Step:
        """Keep what a step came to, and return it."""


@dataclass
class Unkept:
    """Steps that no other process needs to know of."""

    offer: Offer | None = None
    description: TaskDescription | None = None
    assignment: Assignment | None = None
    adaptation: Adaptation | None = None
    receipt: Receipt | None = None
    tuning_file: TuningFile | None = None

    def keep(self, step: Step) -> Step:
        """Hold what a step came to."""
        match step:
            case Offer():
                self.offer = step
            case TaskDescription():
                self.description = step
            case Assignment():
                self.assignment = step
            case Adaptation():
                self.adaptation = step
            case Receipt():
                self.receipt = step
        return step


def adapt(
    coordinator: Coordinator,
    task: Task | Callable[[Offer], Task],
    budget: Budget,
    settings: FineTuneSettings,
    generator: torch.Generator,
    *,
    method: Method = "smsp",
    privacy: Privacy | None = None,
    request_id: str,
    steps: Steps | None = None,
    evaluate_at: Sequence[int] = (),
    progress: Progress | None = None,
) -> tuple[Adaptation, Receipt]:
    """All of a device's steps, against a server in this process or behind a door.

    A step that `steps` has kept is not done again, nor is a server needed for it. The task may be loaded
    once the offer is there; it is, if there is something to compute.
    """
    steps = steps or Unkept()
    offer = steps.offer or steps.keep(coordinator.offer())
    adaptation = steps.adaptation
    if adaptation is None:
        mine = task if isinstance(task, Task) else task(offer)
        assignment = steps.assignment
        if assignment is None:
            description = steps.description or steps.keep(
                describe(offer, mine, budget, method, request_id, privacy, settings.max_memory)
            )
            assignment = steps.keep(coordinator.assign(description))
        adapted, contribution = adapt_assignment(
            assignment,
            mine,
            settings,
            generator,
            evaluate_at=evaluate_at,
            progress=progress,
            file=steps.tuning_file,
        )
        adaptation = steps.keep(Adaptation.of(assignment, adapted, contribution))
    return adaptation, steps.receipt or steps.keep(coordinator.record(adaptation.contribution))


def generator_of(seed: int, place: Path | str) -> torch.Generator:
    """A device's randomness: the same for the same seed and data, through every door and at any time.

    `place` is where its data is, or what else tells it from other devices.
    """
    import torch

    known = place.absolute() if isinstance(place, Path) else place
    digest = hashlib.sha256(f"{seed} {known}".encode(errors="surrogateescape")).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))


def check_timm(structure: Structure) -> None:
    """Raise MismatchError unless the timm installed is the one that the backbone is of."""
    import timm

    model, needed = structure.model["model"], structure.model["timm"]
    if needed != timm.__version__:
        raise MismatchError(
            f"the server's {model} is that of timm {needed}, installed here is timm {timm.__version__}, "
            f"which may compute something else; pip install timm=={needed}"
        )
