"""Adapting a toy network to a toy task, in a second."""

import copy

import torch
from toys import Example

from common.adaptation import Adapted, adapt_network
from common.fine_tune import FineTuneSettings
from common.mask import Mask
from common.subnetwork import SubNetwork
from common.task_data import Task

SETTINGS = FineTuneSettings(iterations=8, batch_size=12, learning_rate=0.01)


def adapt(ours: Example, mask: Mask, task: Task, *, seed: int = 0, **options) -> Adapted:
    network = SubNetwork.of(ours.backbone, ours.weights, mask).network(len(task.classes))
    return adapt_network(
        # A copy's tensors are aligned in memory, so that equal computations give equal bits.
        copy.deepcopy(network),
        ours.backbone,
        mask,
        task,
        options.pop("settings", SETTINGS),
        torch.Generator().manual_seed(seed),
        **options,
    )


def weights_of(adapted: Adapted) -> torch.Tensor:
    return torch.cat([t.detach().flatten().double() for t in adapted.network.state_dict().values()])
