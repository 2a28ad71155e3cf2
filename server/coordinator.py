"""The coordinator: what a server does when a task comes, and when a mask comes back. No transport."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from threading import Lock

import numpy as np

from common.backbone import Weights
from common.budget import Budget, Counts
from common.errors import InputError
from common.exchange import (
    Assignment,
    Choice,
    Contribution,
    Neighbour,
    Offer,
    Receipt,
    TaskDescription,
)
from common.half_precision import in_half_precision
from common.importance import magnitude
from common.mask import Mask
from common.subnetwork import SubNetwork
from server.admission import check_asker, check_weights
from server.budget import allot
from server.healing.healer import Healer
from server.healing.store import HealedStore
from server.library import Entry, Library, Revision, StoredAssignment
from server.library_file import DamagedRow
from server.settings import VotingSettings
from server.similarity import ClassStatistics, Similarity
from server.task_index import TaskIndex
from server.voting import Ballot, elect, explored_units, ranks, with_runners_up


class Coordinator:
    """Serves sub-networks of one backbone from one library; safe to call from several threads."""

    def __init__(
        self,
        library: Library,
        weights: Weights,
        settings: VotingSettings | None = None,
        similarity: Similarity | None = None,
        healed: HealedStore | None = None,
        healer: Healer | None = None,
    ) -> None:
        """Serve a library with its backbone's weights.

        `similarity` defaults to class statistics. What there is in `healed` is taken before the
        weights themselves, from the next network on; a `healer`, which the caller closes, puts there
        what devices are ready to wait for. Raises MismatchError if the weights are not those
        that the library was founded on.
        """
        check_weights(weights, library.weights_digest)
        self._library = library
        # As they travel, rounded once: cutting then moves half the bytes, and every network agrees.
        self._weights = in_half_precision(library.offer.backbone.without_classifiers(weights))
        self._healed = healed
        self._healer = healer
        self._settings = settings or VotingSettings()
        self._offer = library.offer
        self._importance = ranks(magnitude(weights, self._offer.structure))
        self._index = TaskIndex(similarity or ClassStatistics.of(self._offer.probe))
        self._masks: dict[str, Mask] = {}
        self._removed: set[str] = set()
        # One vote at a time. Python runs one thread at a time anyhow; sixteen that vote at once take the
        # interpreter from each other some two hundred times a vote, and get half as much done.
        self._turn = Lock()
        self._refreshing = Lock()
        self._revision = Revision(0, 0)
        self._refresh()
        if healed is not None:
            healed.backbone()  # read now, not when the first device waits

    def _refresh(self) -> None:
        """Take in what was recorded, removed and restored since, by whichever process."""
        revision = self._library.revision()
        if revision <= self._revision:
            return
        with self._refreshing:
            if revision <= self._revision:
                return
            decisions = self._library.removals(after=self._revision.removal)
            for decision in decisions:
                change = self._removed.add if decision.removed else self._removed.discard
                change(decision.entry)
            # What is removed by now takes no memory: a flood that was removed is none at the next start.
            for entry in self._library.entries(after=self._revision.position):
                if entry.entry not in self._removed:
                    self._take_in(entry)
            for name in dict.fromkeys(decision.entry for decision in decisions):
                if name in self._removed:
                    self._index.remove(name)
                elif name not in self._index:
                    with suppress(DamagedRow):  # damaged entries do not vote, as at the start
                        self._take_in(self._library.entry(name))
            self._revision = revision

    def _take_in(self, entry: Entry) -> None:
        # The mask first: whoever finds the entry in the index looks its mask up.
        self._masks[entry.entry] = entry.mask
        self._index.add(entry.entry, entry.signature, entry.position)

    def __len__(self) -> int:
        """How many entries vote."""
        self._refresh()
        return len(self._index)

    def offer(self) -> Offer:
        """What a device needs before it asks."""
        return self._offer

    def assign(self, task: TaskDescription, contributor: str = "") -> Assignment:
        """Vote, cut, send: a sub-network that the nearest tasks' masks chose, within the budget.

        A device that is ready to wait has its network healed first, where there is a healer. The same
        request again gets the same mask, with weights that may be better by then. Errors as of
        `exchange.Coordinator`, and AccessError if the request was assigned to another contributor; "" is
        one without a name.
        """
        choice = self.choose(task, contributor)
        healing = self.begin_healing(choice.mask, task.budget.wait_seconds)
        if healing is not None:
            healing.result()
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
        """What a request was assigned before. Errors as of `asked`."""
        return self.asked(request_id, contributor).choice

    def asked(self, request_id: str, contributor: str | None = None) -> StoredAssignment:
        """A request and its assignment. InputError if it has none, AccessError if it is another's."""
        stored = self._library.assignment_of(request_id)
        if stored is None:
            raise InputError(f"request {request_id} was never assigned here; ask for a sub-network first")
        check_asker(request_id, stored.contributor, contributor)
        return stored

    def begin_healing(self, mask: Mask, seconds: float) -> Future[None] | None:
        """Let a mask's network be healed; done when `cut` has it, or after `seconds`, whichever is first.

        Sooner where it comes to nothing, or did before. This returns at once. None if there is nothing
        to wait for. To cancel it is to wait no more.
        """
        if self._healer is None or self._healed is None or not seconds > 0:
            return None
        return None if self._healed.has_network(mask) else self._healer.request(mask, seconds)

    def cut(self, mask: Mask) -> SubNetwork:
        """The best sub-network of a mask that there is now, in half precision, without waiting for a
        better one.

        The one that was healed for this very mask, else what the mask cuts out of the healed backbone
        if that was healed for about this share of units, else out of the backbone.
        """
        backbone = self._offer.backbone
        if self._healed is not None:
            if (own := self._healed.network(mask)) is not None:
                return SubNetwork(backbone, mask, in_half_precision(own), healed=True)
            healed = self._healed.backbone()
            if healed is not None and healed.covers(mask.density):
                return SubNetwork.of(backbone, healed.halved, mask, healed=True)
        return SubNetwork.of(backbone, self._weights, mask)

    def edition(self, mask: Mask) -> str:
        """A text for what `cut` gives now: as long as it stays the same, so does the network."""
        healed = "" if self._healed is None else self._healed.edition(mask)
        return f"{mask.pack().hex()} {healed}"

    def _vote(
        self, task: TaskDescription, neighbours: tuple[Neighbour, ...], contributor: str
    ) -> StoredAssignment:
        structure = self._offer.structure
        ballots = [Ballot(self._masks[n.entry], n.similarity) for n in neighbours]
        target = held = self._allot(task.budget, task)
        if task.method == "mvp":
            # Dealt on from the target: a larger budget alone might be spent on other groups.
            held = self._allot(task.budget.while_adapting, task, beyond=target)
        pruned = held != target
        explored = (0,) * len(held) if pruned else explored_units(structure, held, self._settings.explore)
        elected = elect(structure, ballots, task.method, held, self._importance, self._prior(held))
        mask = elected.mask
        # Where importance elects, all devices get one network; which of its units a task needs least is
        # learned all the same, as fewer are to come back.
        if elected.origin == "vote" and any(explored):
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

    def _prior(self, held: Counts) -> float:
        """What importance is worth for a network of so many units per group.

        Where it will be cut out of the healed backbone, what that was healed with: only masks that were
        elected alike are healed for.
        """
        healed = None if self._healed is None else self._healed.backbone()
        if healed is not None and healed.covers(self._offer.structure.share(held)):
            return healed.prior
        return self._settings.prior

    def _allot(self, budget: Budget, task: TaskDescription, beyond: Counts | None = None) -> Counts:
        return allot(self._offer.structure, budget, task.signature.classes, beyond)

    def record(self, contribution: Contribution, contributor: str | None = None) -> Receipt:
        """Store a contribution; from the next `choose` on its task votes. Errors as `Library.record`."""
        return self._library.record(contribution, contributor)

    @property
    def masks(self) -> Mapping[str, Mask]:
        """The mask of every entry, but for those that were removed when this coordinator began."""
        self._refresh()
        return self._masks
