"""Growing: a library without an operator, of what devices give back and nothing else.

The run's library tasks come one after the other as devices: each is served from what those before it gave
back. A refined library keeps the masks that they found while tuning, as devices do; an echoed one keeps
the masks that they were sent, to tell what the devices' own part is worth.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from client.adapt import adapt, describe
from common.budget import Budget
from common.exchange import Contribution, Offer
from common.task_data import Task
from common.tuning_settings import FineTuneSettings
from server.coordinator import Coordinator
from server.library import Library
from server.settings import VotingSettings
from simulations.tasks import TaskChoice, Watch

GROWN_ITERATIONS = 25
"""That devices tune while a library grows."""


def request_of(choice: TaskChoice) -> str:
    """The request id of a library task that comes as a device."""
    return hashlib.sha256(choice.name.encode()).hexdigest()[:32]


def grow(
    path: Path,
    offer: Offer,
    weights: dict[str, torch.Tensor],
    weights_digest: str,
    tasks: Sequence[tuple[TaskChoice, Callable[[], Task]]],
    keep_ratio: float,
    *,
    refined: bool,
    watch: Watch,
) -> None:
    """Let devices with these tasks come one after the other to a library of their own, in `path`.

    Those whose masks it has are not asked again: a library that was stopped grows on.
    """
    library = Library.open(path) if path.exists() else Library.create(path, offer, weights_digest)
    with library:
        voting = VotingSettings(neighbours=5, explore=VotingSettings.explore if refined else 0.0)
        coordinator = Coordinator(library, weights, voting)
        grown = {entry.entry for entry in library.entries()}
        for number, (choice, load) in enumerate(tasks, start=1):
            request = request_of(choice)
            if request not in grown:
                task, budget = load(), Budget(keep_ratio=keep_ratio)
                if refined:
                    settings = FineTuneSettings(iterations=GROWN_ITERATIONS)
                    generator = torch.Generator().manual_seed(int(request[:8], 16))
                    adapt(coordinator, task, budget, settings, generator, request_id=request)
                else:
                    asked = describe(offer, task, budget, "smsp", request)
                    mask = coordinator.choose(asked).mask
                    coordinator.record(Contribution(request, mask, 0.0, 0.0, 0))
            watch(number, len(tasks))
