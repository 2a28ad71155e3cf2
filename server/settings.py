"""Settings of the server's commands, each with a default and a reason. Nothing here needs torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from common.errors import InputError
from common.exchange import MAX_ROUNDS

PROBE_KEEP_RATIO = 0.25
"""The probe's share of the backbone's units: small to download, and its features still tell tasks."""
PROOF_SECONDS = 600.0
"""For the proof of what can be cut; what is not checked by then stays frozen."""
MOST_IMAGES = 10_000
"""Public images that are used unless asked otherwise. Pixels are held in memory up to
`common.memory_limit.PIXEL_BYTES`; images beyond that are decoded each time that they are used."""
HEALER_SECONDS = 120.0
"""For one network that is healed alone, at most: longer than that, another device waits."""
MAX_PRIOR = 1e6
"""Far beyond where votes decide nothing but ties."""


@dataclass(frozen=True)
class VotingSettings:
    """How neighbours vote."""

    neighbours: int = 10
    """K: enough that no single one decides, few enough that they are near."""
    explore: float = 0.1
    """Share of an SMSP sub-network's units that are runners-up, so that a device ranks more than
    what was voted for, and returns no echo of the vote."""
    rounds: int = 3
    """Rounds of pruning that an MVP device does from its larger start to its budget."""
    prior: float = 0.5
    """What the backbone's own importance is worth beside the votes; the papers have 0. Neighbours' masks
    are noisy, and few: of two units with about as many votes the more important one is the better bet."""

    def __post_init__(self) -> None:
        if self.neighbours < 1 or not 1 <= self.rounds <= MAX_ROUNDS or not 0 <= self.explore < 1:
            raise InputError(
                f"{self.neighbours} neighbours, {self.rounds} rounds, exploring {self.explore}; needed "
                f"are at least one neighbour, 1 to {MAX_ROUNDS} rounds, and a share in [0, 1)"
            )
        if not 0 <= self.prior <= MAX_PRIOR:
            raise InputError(f"the prior is {self.prior}; it is a number from 0 to {MAX_PRIOR:g}")


HEAL_VOTING = VotingSettings(prior=10_000.0)
"""How masks to heal for are elected if nothing else is said: votes decide ties alone. To be healed for
one network of every size, the same for everybody, is worth more than for many (docs/results.md)."""


@dataclass(frozen=True)
class KeepRatios:
    """From which to which share of the units masks keep. InputError unless 0 < low <= high <= 1."""

    low: float = 0.03
    high: float = 0.3

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high <= 1:
            raise InputError(
                f"keep ratios from {self.low} to {self.high}; both lie in (0, 1], the lower one first"
            )


START_SHARE = 0.04
"""Of the learning rate, at the beginning."""


@dataclass(frozen=True)
class HealingSettings:
    """How sub-networks are healed: stochastic gradient descent with a learning rate that rises, and then
    falls to nothing by the end of the iterations or of the seconds, whichever comes first.

    The defaults were chosen with a ResNet-18, on tasks that no table reports.
    """

    iterations: int = 1000
    seconds: float = float("inf")
    """When to stop in any case, with what is healed until then."""
    batch_size: int = 64
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    clip_norm: float = 5.0
    warm_up: float = 0.15
    """Share of it all in which the learning rate rises."""

    def __post_init__(self) -> None:
        if self.iterations < 0 or not self.seconds > 0:
            raise InputError(
                f"healing for {self.iterations} iterations and {self.seconds} seconds; iterations are "
                "at least 0, seconds above 0"
            )
        for name in ("batch_size", "learning_rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} is {getattr(self, name)}; it must be above 0")
        if not 0 < self.warm_up < 1:
            raise InputError(f"warm_up is {self.warm_up}; it is a share, above 0 and below 1")

    def rate(self, progress: float) -> float:
        """The learning rate when this share of the iterations or seconds, in [0, 1], is over."""
        if progress < self.warm_up:
            share = START_SHARE + (1 - START_SHARE) * _eased(progress / self.warm_up)
        else:
            share = 1 - _eased((progress - self.warm_up) / (1 - self.warm_up))
        return self.learning_rate * share


def _eased(share: float) -> float:
    """From 0 to 1, slowly at both ends."""
    return (1 - math.cos(math.pi * share)) / 2
