"""How a network is tuned and pruned: settings with their rules. Nothing here needs torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from common.errors import InputError

Tuned = Literal["all", "head"]
TUNED: tuple[Tuned, ...] = get_args(Tuned)

Precision = Literal["fp32", "bf16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


@dataclass(frozen=True)
class FineTuneSettings:
    """How a sub-network is tuned on a task, and what that may take of the device.

    Stochastic gradient descent with Nesterov momentum; the learning rate falls along a cosine. The
    defaults were chosen on tasks that no table reports.
    """

    iterations: int = 50
    batch_size: int = 32
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    clip_norm: float = 1.0
    """Longest gradient step taken: a cut network's first gradients can be huge, and wreck it."""
    final_rate: float = 0.05
    """Where the cosine ends, as a share of the learning rate; 1 keeps it constant."""
    fit_images: int = 2048
    """Images for batch-norm statistics and the classifier: more is slower, fewer is noisier."""
    micro_batch: int = 0
    """Images that are in memory at a time, their gradients averaged over the batch; 0 is all of them.
    Without batch norm that changes nothing else; batch norm normalises by what is in memory, and a
    single image by the statistics that there are."""
    tuned: Tuned = "all"
    """All parameters, or those of the head alone: the classifiers', and norms' scales and shifts."""
    precision: Precision = "fp32"
    """With bf16 layers compute in half the bits where that is known to do, which saves time on CPUs that
    have it and costs time on others; weights and gradients stay as they are."""
    max_seconds: float | None = None
    """How long adapting may take: tuning ends early, its learning rate having fallen; None: any time."""
    max_memory: float | None = None
    """Bytes that the process may hold meanwhile; see `memory_limit`; None: any number."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "learning_rate", "clip_norm", "fit_images"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} is {getattr(self, name)}; it must be above 0")
        if self.iterations < 0:
            raise InputError(f"iterations are {self.iterations}; they cannot be negative")
        if self.micro_batch < 0:
            raise InputError(f"micro_batch is {self.micro_batch} images; give 0 for the whole batch")
        for name, known in (("tuned", TUNED), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise InputError(f"{name} is {getattr(self, name)!r}; choose {' or '.join(known)}")
        for name in ("max_seconds", "max_memory"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{name} is {value}; it must be above 0, or left out for no limit")


@dataclass(frozen=True)
class PruningSettings:
    """How units are dropped: in so many rounds, the last of them `settle` of all iterations early.

    What is left of the iterations tunes the network at its final size.
    """

    rounds: int = 3
    settle: float = 0.4

    def __post_init__(self) -> None:
        if self.rounds < 1 or not 0 <= self.settle < 1:
            raise InputError(
                f"{self.rounds} rounds and a settling share of {self.settle}; needed are at least "
                "one round and a share in [0, 1)"
            )
