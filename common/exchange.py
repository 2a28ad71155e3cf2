"""What crosses between device and server, and the protocol that both doors satisfy.

A device is offered the backbone's description, its structure and the probe; it describes its task,
is assigned a sub-network, and contributes the mask it ends with.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from common.budget import Budget
from common.errors import InputError, MismatchError
from common.mask import Mask
from common.signature import MAX_CLASSES, TaskSignature
from common.structure import Structure

if TYPE_CHECKING:
    from common.backbone import Backbone
    from common.probe import Probe
    from common.subnetwork import SubNetwork

Method = Literal["smsp", "mvp"]
METHODS: tuple[Method, ...] = ("smsp", "mvp")

REQUEST_ID = re.compile(r"[0-9a-f]{32}")
MAX_ROUNDS = 1000


@dataclass(frozen=True)
class Offer:
    """What a library stands for, and what a device needs before it can ask: fetched once.

    The structure is the backbone's, and the probe is cut from this backbone by this structure:
    raises MismatchError otherwise.
    """

    backbone: Backbone
    structure: Structure
    probe: Probe

    def __post_init__(self) -> None:
        own, found_in = (
            json.dumps(dict(model), sort_keys=True)
            for model in (self.backbone.identity, self.structure.model)
        )
        if own != found_in:
            raise MismatchError(
                f"the backbone is {own[:200]}, the structure was found in {found_in[:200]}; "
                "discover the structure of this backbone"
            )
        network = self.probe.subnetwork
        if network.mask.structure.digest != self.structure.digest:
            raise MismatchError(
                f"the probe was cut by structure {network.mask.structure.digest[:12]}, the one on offer "
                f"is {self.structure.digest[:12]}; cut it anew"
            )
        if network.backbone.to_json() != self.backbone.to_json():
            raise MismatchError(
                f"the probe is not cut from the {self.backbone.model} on offer; cut it anew"
            )


@dataclass(frozen=True)
class BudgetLimits:
    """The smallest sub-network: what a budget is at least. One above the backbone gives all of it.

    `keep_ratio` is in (0, 1]; the parameters of a task of K classes are at least `parameters` + K *
    `parameters_per_class`.
    """

    keep_ratio: float
    parameters: int
    parameters_per_class: int


@dataclass(frozen=True)
class Limits:
    """What a server accepts of one caller; see `Limits` in protos/devices.proto."""

    message_bytes: int = 4 * 2**20
    calls_per_minute: int = 600
    burst: int = 60
    concurrent_calls: int = 8
    receive_seconds: int = 20
    bytes_per_minute: int = 8 * 2**20
    """Twice the largest message. A task of ten classes is some 10 kB, one of a thousand up to 4 MB, and
    a device that adapts sends one in minutes; without a limit a token could fill 0.6 GB a minute."""

    def __post_init__(self) -> None:
        if min(vars(self).values()) < 1 or max(vars(self).values()) >= 2**32:
            raise InputError(f"these limits are {vars(self)}; each is at least 1, and below 2**32")


@dataclass(frozen=True)
class Terms:
    """What a server says of itself beside its offer: its backbone by name and digest, and its limits.

    `weights_digest` is the sha256 of the backbone's weights, in hexadecimal: for people to compare, as
    no device ever holds them.
    """

    model: str
    weights_digest: str
    budgets: BudgetLimits
    limits: Limits
    server_version: str


@dataclass(frozen=True)
class TaskDescription:
    """A device's request: the signature of its task, and what it can afford.

    `request_id` (32 hexadecimal digits, drawn by the device) makes asking twice the same as once.
    """

    request_id: str
    signature: TaskSignature
    budget: Budget
    method: Method = "smsp"

    def __post_init__(self) -> None:
        check_request_id(self.request_id)
        if self.method not in METHODS:
            raise InputError(f"there is no method {self.method!r}; choose {' or '.join(METHODS)}")


def check_request_id(request_id: str) -> None:
    """Raise InputError unless this is a request id."""
    if not REQUEST_ID.fullmatch(request_id):
        raise InputError(
            f"the request id is {request_id[:40]!r}; it is 32 hexadecimal digits, drawn at random"
        )


@dataclass(frozen=True)
class Neighbour:
    """A task of the library that voted: its entry, and how similar its task is, in [0, 1]."""

    entry: str
    similarity: float

    def __post_init__(self) -> None:
        if not 0 <= self.similarity <= 1:
            raise InputError(f"a neighbour's similarity is {self.similarity}; it lies in [0, 1]")


Origin = Literal["vote", "importance"]
"""Where a mask came from: neighbours' votes, or the backbone's own importance, as in an empty library."""


@dataclass(frozen=True)
class Choice:
    """Which sub-network a device is assigned, and how far it is to be pruned down; not yet its weights.

    It is for a task of so many `classes` as the device described. `target` are the units per group that
    the contributed mask keeps, at most those of `mask`: what the device drops, and what it does not, is
    what the library learns. With `rounds` above 0 (up to 1000) the network itself is pruned down to it
    (MVP); with 0 it stays (SMSP).
    """

    request_id: str
    classes: int
    method: Method
    origin: Origin
    mask: Mask
    target: tuple[int, ...]
    rounds: int
    neighbours: tuple[Neighbour, ...]

    def __post_init__(self) -> None:
        check_request_id(self.request_id)
        if not 2 <= self.classes <= MAX_CLASSES:
            raise InputError(f"a choice for {self.classes} classes; from 2 to {MAX_CLASSES} make a task")
        if not 0 <= self.rounds <= MAX_ROUNDS:
            raise InputError(f"{self.rounds} rounds of pruning; they are 0 to {MAX_ROUNDS}")
        held = self.mask.counts
        if len(self.target) != len(held) or any(
            not 1 <= want <= have for want, have in zip(self.target, held, strict=True)
        ):
            raise InputError(
                f"the target keeps {self.target} of {held} units per group; it keeps at least one "
                "and at most what is held"
            )


@dataclass(frozen=True)
class Assignment(Choice):
    """The server's answer: a choice, and the sub-network that its mask cuts out.

    Raises MismatchError where the sub-network is another mask's.
    """

    subnetwork: SubNetwork

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.subnetwork.mask != self.mask:
            differing = int((self.subnetwork.mask.kept != self.mask.kept).sum())
            raise MismatchError(
                f"message and network differ in {differing} units of their mask; ask again"
            )


@dataclass(frozen=True)
class Contribution:
    """What a device gives back: its mask, and how well the network did that it stands for.

    Accuracies, in [0, 1], are on images that took no part in anything else; before is after batch
    norm and the classifier were fitted and no iteration was done.
    """

    request_id: str
    mask: Mask
    accuracy_before: float
    accuracy_after: float
    iterations: int

    def __post_init__(self) -> None:
        check_request_id(self.request_id)
        for name in ("accuracy_before", "accuracy_after"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}; it lies in [0, 1]")
        if not 0 <= self.iterations < 2**31:
            raise InputError(f"{self.iterations} iterations; it is a number from 0")


@dataclass(frozen=True)
class Receipt:
    """The server's word that a contribution is stored: its entry, and how many the library holds."""

    entry: str
    entries: int


class Coordinator(Protocol):
    """The server, to a device: in this process or behind a door."""

    def offer(self) -> Offer:
        """What the device needs before it asks."""

    def assign(self, task: TaskDescription) -> Assignment:
        """A sub-network that the masks of the nearest tasks voted for, within the budget.

        Raises MismatchError for a signature of another probe, BudgetError where nothing fits.
        """

    def record(self, contribution: Contribution) -> Receipt:
        """Store a contribution; the same one again gives the same receipt.

        Raises InputError for a request that was never assigned, or a contribution that differs from
        one already stored; LibraryError where it cannot be stored.
        """
