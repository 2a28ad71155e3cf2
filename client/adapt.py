"""What a device does: it describes its task, adapts the sub-network it gets, and gives a mask back."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from common.adaptation import Adapted, Progress, adapt_network
from common.exchange import (
    Assignment,
    Budget,
    Contribution,
    Coordinator,
    Method,
    Offer,
    Receipt,
    TaskDescription,
)
from common.fine_tune import FineTuneSettings
from common.mask import Mask
from common.pruning import PruningSettings
from common.task_data import Task


def describe(
    offer: Offer, task: Task, budget: Budget, method: Method, request_id: str
) -> TaskDescription:
    """The request that a device sends: its signature and its budget, nothing else of its data."""
    signature = offer.probe.describe(task.train, len(task.classes))
    return TaskDescription(request_id, signature, budget, method)


def adapt_assignment(
    assignment: Assignment,
    task: Task,
    settings: FineTuneSettings,
    generator: torch.Generator,
    *,
    evaluate_at: Sequence[int] = (),
    progress: Progress | None = None,
) -> tuple[Adapted, Contribution]:
    """Adapt the sub-network to the task in a few iterations, and find the mask to give back.

    The assignment's own tensors are tuned: for another attempt it is decoded again.
    Every unit that the device holds was ranked while it tuned; the contributed mask keeps the best,
    the assignment's target of every group. With rounds to do (MVP), the network itself is pruned
    down to them on the way.
    """
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
    )
    held = adapted.pruned
    contribution = Contribution(
        request_id=assignment.request_id,
        mask=Mask.keep_top(held.mask.structure, held.scores, assignment.target),
        accuracy_before=adapted.before,
        accuracy_after=adapted.after,
        iterations=settings.iterations,
    )
    return adapted, contribution


def adapt(
    coordinator: Coordinator,
    task: Task,
    budget: Budget,
    settings: FineTuneSettings,
    generator: torch.Generator,
    *,
    method: Method = "smsp",
    request_id: str,
    evaluate_at: Sequence[int] = (),
    progress: Progress | None = None,
) -> tuple[Adapted, Assignment, Receipt]:
    """All of a device's steps, against a server in this process or behind a door."""
    description = describe(coordinator.offer(), task, budget, method, request_id)
    assignment = coordinator.assign(description)
    adapted, contribution = adapt_assignment(
        assignment, task, settings, generator, evaluate_at=evaluate_at, progress=progress
    )
    return adapted, assignment, coordinator.record(contribution)
