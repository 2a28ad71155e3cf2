"""Entries: what a library knows of earlier tasks, and what an operator can do with them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

from common.exchange import METHODS, Choice, Method, Neighbour, Origin, TaskDescription
from common.mask import Mask
from common.signature import TaskSignature
from common.structure import Structure

EntryMethod = Method | Literal["iterative"]
"""How an entry's mask was made: by a vote and what followed, or by iterative pruning."""

ENTRY_METHODS: tuple[EntryMethod, ...] = (*METHODS, "iterative")

MAX_NAME_CHARACTERS = 200
"""Of whoever contributed, removed or restored an entry, and of a neighbour."""
MAX_REASON_CHARACTERS = 500


@dataclass(frozen=True)
class Removal:
    """That an entry takes no part in votes: since when, who removed it, and why."""

    at: datetime
    by: str
    reason: str


@dataclass(frozen=True)
class EntryFacts:
    """What there is to know of an entry, short of its signature and mask.

    `position` counts entries from 1 in the order of recording. `classes` and `images` are of its
    signature; `units` are those that its mask keeps, `parameters` of such a network with its own
    classifier. Accuracies are in [0, 1]. `removed` is None while it votes.
    """

    entry: str
    position: int
    method: EntryMethod
    contributor: str
    recorded: datetime
    classes: int
    images: int
    units: int
    parameters: int
    accuracy_before: float
    accuracy_after: float
    iterations: int
    neighbours: tuple[Neighbour, ...]
    removed: Removal | None


@dataclass(frozen=True)
class Entry:
    """An earlier task: its signature, the mask it ended with, and how well that did.

    Accuracies are in [0, 1]. `position` counts entries from 1 in the order of recording.
    """

    entry: str
    signature: TaskSignature
    mask: Mask
    method: EntryMethod
    accuracy_before: float
    accuracy_after: float
    iterations: int
    neighbours: tuple[Neighbour, ...]
    contributor: str
    recorded: datetime
    position: int

    @property
    def keep_ratio(self) -> float:
        """The share of the backbone's units that the mask keeps, in (0, 1]."""
        return self.mask.density

    def facts(self, removed: Removal | None) -> EntryFacts:
        """What there is to know of it, short of its signature and mask."""
        return EntryFacts(
            entry=self.entry,
            position=self.position,
            method=self.method,
            contributor=self.contributor,
            recorded=self.recorded,
            classes=self.signature.classes,
            images=self.signature.images,
            units=sum(self.mask.counts),
            parameters=self.mask.structure.parameters(self.mask.counts, self.signature.classes),
            accuracy_before=self.accuracy_before,
            accuracy_after=self.accuracy_after,
            iterations=self.iterations,
            neighbours=self.neighbours,
            removed=removed,
        )


@dataclass(frozen=True)
class StoredAssignment:
    """What a device asked and was assigned: enough to answer the same again."""

    description: TaskDescription
    origin: Origin
    target: tuple[int, ...]
    rounds: int
    mask: Mask
    neighbours: tuple[Neighbour, ...]
    contributor: str

    @property
    def choice(self) -> Choice:
        """What the device is told of it, before its network is cut."""
        return Choice(
            request_id=self.description.request_id,
            classes=self.description.signature.classes,
            method=self.description.method,
            origin=self.origin,
            mask=self.mask,
            target=self.target,
            rounds=self.rounds,
            neighbours=self.neighbours,
        )


@dataclass(frozen=True)
class Statistics:
    """What a library holds, in numbers.

    `voting` and `removed` count entries, `unanswered` requests that were assigned a sub-network and
    not recorded. `by_method`, `by_contributor` and the mean accuracies, in [0, 1], are over entries
    that vote; a mean over none is 0. `file_bytes` is the size of the library's file.
    """

    voting: int
    removed: int
    unanswered: int
    by_method: dict[str, int]
    by_contributor: dict[str, int]
    accuracy_before: float
    accuracy_after: float
    file_bytes: int


class Operations(Protocol):
    """What an operator does with a library: one that is open in this process, or one that is served."""

    @property
    def structure(self) -> Structure:
        """The groups of units that its masks are about."""

    def facts(self) -> Iterator[EntryFacts]:
        """Of all entries in the order of recording, removed ones too, without damaged ones."""

    def entry(self, entry: str) -> Entry:
        """One entry, also if it is removed. InputError if it is not recorded."""

    def facts_of(self, entry: str) -> EntryFacts:
        """What there is to know of one entry. InputError if it is not recorded."""

    def remove(self, entry: str, by: str, reason: str) -> EntryFacts:
        """Take an entry out of all votes from now on; what is removed already stays as it is.

        `by` is at most 200, `reason` 1 to 500 printable characters. Where the library is served, the
        name of the operator's token stands in place of `by`. InputError if the entry is not recorded.
        """

    def restore(self, entry: str, by: str, reason: str) -> EntryFacts:
        """Let a removed entry vote again; the same rules as for `remove`."""

    def export(self) -> Iterator[Entry]:
        """All entries that are not removed, in the order of recording, without damaged ones."""

    def take_in(self, entries: Iterable[Entry]) -> tuple[int, int]:
        """Add entries, as they are but for their positions; how many were new, and how many there.

        InputError for an entry that breaks a rule or differs from the one that is there, MismatchError
        for one of another library; those before it stay, and taking in all of them again goes on.
        """

    def statistics(self) -> Statistics:
        """What the library holds, in numbers."""
