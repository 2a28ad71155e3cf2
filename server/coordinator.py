"""The coordinator: what a server does when a task comes, and when a mask comes back. No transport."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock

import numpy as np

from common.backbone import Weights, weights_digest
from common.errors import InputError, MismatchError
from common.exchange import (
    MAX_ROUNDS,
    Assignment,
    Budget,
    Choice,
    Contribution,
    Neighbour,
    Offer,
    Receipt,
    TaskDescription,
)
from common.importance import magnitude
from common.mask import Mask
from common.subnetwork import SubNetwork
from server.admission import check_asker
from server.budget import Counts, allot
from server.library import Library, Revision, StoredAssignment
from server.similarity import ClassStatistics, Similarity
from server.task_index import TaskIndex
from server.voting import Ballot, elect, with_runners_up


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

    def __post_init__(self) -> None:
        if self.neighbours < 1 or not 1 <= self.rounds <= MAX_ROUNDS or not 0 <= self.explore < 1:
            raise InputError(
                f"{self.neighbours} neighbours, {self.rounds} rounds, exploring {self.explore}; needed "
                f"are at least one neighbour, 1 to {MAX_ROUNDS} rounds, and a share in [0, 1)"
            )


class Coordinator:
    """Serves sub-networks of one backbone from one library; safe to call from several threads."""

    def __init__(
        self,
        library: Library,
        weights: Weights,
        settings: VotingSettings | None = None,
        similarity: Similarity | None = None,
    ) -> None:
        """Serve a library with its backbone's weights.

        `similarity` defaults to class statistics. Raises MismatchError if the weights are not those
        that the library was founded on.
        """
        digest = weights_digest(weights)
        if digest != library.weights_digest:
            raise MismatchError(
                f"these weights have digest {digest[:12]}, the library was founded on "
                f"{library.weights_digest[:12]}; give the checkpoint it was founded on"
            )
        self._library = library
        self._weights = weights
        self._settings = settings or VotingSettings()
        self._offer = library.offer
        self._importance = magnitude(weights, self._offer.structure)
        self._index = TaskIndex(similarity or ClassStatistics(self._offer.probe.center))
        self._masks: dict[str, Mask] = {}
        # One vote at a time. Python runs one thread at a time anyhow; sixteen that vote at once take the
        # interpreter from each other some two hundred times a vote, and get half as much done.
        self._turn = Lock()
        self._refreshing = Lock()
        self._revision = Revision(0, 0)
        self._refresh()

    def _refresh(self) -> None:
        """Take in what was recorded, removed and restored since, by whichever process."""
        revision = self._library.revision()
        if revision <= self._revision:
            return
        with self._refreshing:
            if revision <= self._revision:
                return
            for entry in self._library.entries(after=self._revision.position):
                # The mask first: whoever finds the entry in the index looks its mask up.
                self._masks[entry.entry] = entry.mask
                self._index.add(entry.entry, entry.signature)
            for decision in self._library.removals(after=self._revision.removal):
                change = self._index.exclude if decision.removed else self._index.include
                change(decision.entry)
            self._revision = revision

    def __len__(self) -> int:
        """How many entries vote."""
        self._refresh()
        return len(self._index)

    def offer(self) -> Offer:
        """What a device needs before it asks."""
        return self._offer

    def assign(self, task: TaskDescription, contributor: str = "") -> Assignment:
        """Vote, cut, send: a sub-network that the nearest tasks' masks chose, within the budget.

        The same request again gets the same answer. Errors as of `exchange.Coordinator`, and AccessError
        if the request was assigned to another contributor; "" is one without a name.
        """
        choice = self.choose(task, contributor)
        return Assignment(**vars(choice), subnetwork=self.cut(choice.mask))

    def choose(self, task: TaskDescription, contributor: str = "") -> Choice:
        """What `assign` assigns, but for the network; it is on the disk when this returns."""
        with self._turn:
            stored = self._library.assignment_of(task.request_id)
            if stored is not None:
                check_asker(task.request_id, stored.contributor, contributor)
                if stored.description == task:
                    return stored.choice
            # What differs under a request id that is taken, the library refuses.
            self._offer.probe.check(task.signature)
            self._refresh()
            neighbours = self._index.nearest(task.signature, self._settings.neighbours)
            voted = self._vote(task, neighbours, contributor)
        return self._library.assigned(voted).choice

    def chosen(self, request_id: str, contributor: str | None = None) -> Choice:
        """What a request was assigned before. InputError if it never was, AccessError if to another."""
        stored = self._library.assignment_of(request_id)
        if stored is None:
            raise InputError(f"request {request_id} was never assigned here; ask for a sub-network first")
        check_asker(request_id, stored.contributor, contributor)
        return stored.choice

    def cut(self, mask: Mask) -> SubNetwork:
        """The sub-network that a mask cuts out of the backbone."""
        return SubNetwork.of(self._offer.backbone, self._weights, mask)

    def _vote(
        self, task: TaskDescription, neighbours: tuple[Neighbour, ...], contributor: str
    ) -> StoredAssignment:
        structure = self._offer.structure
        ballots = [Ballot(self._masks[n.entry], n.similarity) for n in neighbours]
        target = held = self._allot(task.budget, task)
        if task.method == "mvp":
            held = self._allot(task.budget.while_adapting, task)
        pruned = held != target
        explored = (0,) * len(held) if pruned else self._explored(held)
        elected = elect(structure, ballots, task.method, held, self._importance)
        mask = elected.mask
        if ballots and any(explored):
            seed = int(task.request_id, 16)
            mask = with_runners_up(mask, elected.scores, explored, seed, tie_break=self._importance)
        return StoredAssignment(
            description=task,
            origin=elected.origin,
            mask=mask,
            target=tuple(np.subtract(target, explored).tolist()),
            rounds=self._settings.rounds if pruned else 0,
            neighbours=neighbours,
            contributor=contributor,
        )

    def _explored(self, held: Counts) -> Counts:
        """How many units of every group are given up for runners-up, as far as there are any."""
        return tuple(
            min(count - 1, units - count, round(self._settings.explore * count))
            for count, units in zip(held, self._offer.structure.sizes, strict=True)
        )

    def _allot(self, budget: Budget, task: TaskDescription) -> Counts:
        return allot(self._offer.structure, budget, task.signature.classes)

    def record(self, contribution: Contribution, contributor: str | None = None) -> Receipt:
        """Store a contribution; from the next `choose` on its task votes. Errors as `Library.record`."""
        return self._library.record(contribution, contributor)

    @property
    def masks(self) -> Mapping[str, Mask]:
        """The mask of every entry, removed ones too."""
        self._refresh()
        return self._masks
