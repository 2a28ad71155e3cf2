"""Fleet: the devices of a Flower run, from the first message to each to its last."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace

from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from common.errors import InputError, LibraryError, MaskvoteError
from common.exchange import Assignment, Choice
from common.proto_codec import (
    decode_contribution,
    decode_task_description,
    encode_assignment,
    encode_offer,
)
from common.record_codec import measured_of, message_of, pack
from common.settings import FleetSettings
from server.coordinator import Coordinator
from server.fleet_report import DeviceOutcome, Failure, row

SIGNATURE, ADAPT = "query.signature", "train.adapt"

GRACE_SECONDS = 2.0
"""After a message's time is over, until it counts as lost: Flower reports it, but only if asked to."""

MAX_REASON_CHARACTERS = 500

FAILURE_OF: dict[int, Failure] = {
    ErrorCode.MESSAGE_UNAVAILABLE: "silent",
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE: "silent",
    ErrorCode.NODE_UNAVAILABLE: "unreachable",
}
"""What Flower's own errors mean for us; all others are the device's."""

Watch = Callable[[DeviceOutcome], None]
"""Called with what is known of a device whenever it comes to another stage."""

# A child of Flower's own logger, so that `flwr log` shows it.
logger = logging.getLogger("flwr.maskvote")


@dataclass
class _Visit:
    """A device in flight: what is known of it, and until when its reply may come."""

    outcome: DeviceOutcome
    deadline: float


@dataclass
class _Patient:
    """A device that waits while its network is healed; `healing` is done when it has waited enough."""

    outcome: DeviceOutcome
    choice: Choice
    healing: Future[None]


class Fleet:
    """The devices of one run: those that wait, those in flight, and how each one ended."""

    def __init__(
        self,
        grid: Grid,
        coordinator: Coordinator,
        settings: FleetSettings,
        watch: Watch | None = None,
    ) -> None:
        self.ended: list[DeviceOutcome] = []
        self._grid = grid
        self._coordinator = coordinator
        self._structure = coordinator.offer().structure
        self._offer, self._probe = encode_offer(coordinator.offer())
        self._settings = settings
        self._watch = watch
        self._met: set[int] = set()
        self._waiting: deque[int] = deque()
        self._in_flight: dict[str, _Visit] = {}
        self._patient: list[_Patient] = []
        self._began = self._last_news = self._last_look = time.monotonic()

    @property
    def waiting(self) -> int:
        """How many nodes were met and not asked yet."""
        return len(self._waiting)

    def is_done(self) -> bool:
        """Whether enough devices ended, none came for long, or the run's time is over."""
        now, settings = time.monotonic(), self._settings
        enough = 0 < settings.devices <= len(self.ended)
        busy = self._in_flight or self._patient or (self._waiting and not enough)
        idle = not busy and now - self._last_news >= settings.idle_seconds
        return enough or idle or now - self._began >= settings.max_seconds

    def meet_newcomers(self) -> None:
        """Let nodes that have appeared wait for their turn; one that comes back had it."""
        newcomers = [node for node in self._grid.get_node_ids() if node not in self._met]
        if newcomers:
            self._last_news = time.monotonic()
        self._met.update(newcomers)
        self._waiting.extend(newcomers)

    def ask_for_signatures(self) -> None:
        """Make waiting nodes the offer, as many as may be in flight."""
        settings = self._settings
        while self._waiting and len(self._in_flight) < settings.at_once:
            met = len(self.ended) + len(self._in_flight) + len(self._patient)
            if 0 < settings.devices <= met:
                return
            outcome = DeviceOutcome(
                node=self._waiting.popleft(),
                stage="describing",
                bytes_down=len(self._offer),
                probe_bytes=len(self._probe),
            )
            with self._judging(outcome):
                self._send(outcome, SIGNATURE, pack(self._offer, self._probe))

    def send_healed(self) -> None:
        """Send those who waited for it their networks, as many as may be in flight."""
        for patient in [patient for patient in self._patient if patient.healing.done()]:
            if len(self._in_flight) >= self._settings.at_once:
                return
            self._patient.remove(patient)
            with self._judging(patient.outcome):
                self._send_network(patient.outcome, patient.choice)

    def hear_replies(self) -> bool:
        """Take every reply that has come a step further; whether there was any."""
        if not self._in_flight:
            return False
        self._last_look = time.monotonic()
        # By position: the parameter's name changes with Flower 1.43.
        replies = list(self._grid.pull_messages(list(self._in_flight)))
        for reply in replies:
            visit = self._in_flight.pop(reply.metadata.reply_to_message_id, None)
            if visit is not None:
                with self._judging(visit.outcome):
                    self._hear(visit.outcome, reply)
        return bool(replies)

    def give_up_on_lost_replies(self) -> None:
        """End the visits whose time was over at the last look for replies.

        That look may have taken minutes, as Flower waits for a reply that was sent in part; what others
        have sent meanwhile is to be heard first.
        """
        late = [m for m, visit in self._in_flight.items() if self._last_look >= visit.deadline]
        for message_id in late:
            visit = self._in_flight.pop(message_id)
            self._fail(visit.outcome, "silent", f"no reply in {self._settings.ttl_seconds:g} s")

    def end(self) -> None:
        """End the visits that are under way still."""
        for patient in self._patient:
            patient.healing.cancel()
        under_way = [visit.outcome for visit in self._in_flight.values()]
        for outcome in [*under_way, *(patient.outcome for patient in self._patient)]:
            self._fail(outcome, "unfinished", f"the run ended while it was {outcome.stage}")
        self._in_flight.clear()
        self._patient.clear()

    def _hear(self, outcome: DeviceOutcome, reply: Message) -> None:
        if reply.has_error():
            self._fail(outcome, FAILURE_OF.get(reply.error.code, "device"), _reason(reply.error))
        elif outcome.stage == "describing":
            self._assign(outcome, reply.content)
        else:
            self._record(outcome, reply.content)

    def _assign(self, outcome: DeviceOutcome, content: RecordDict) -> None:
        described = message_of(content)
        task = decode_task_description(described)
        choice = self._coordinator.choose(task, _contributor(outcome))
        assigned = replace(
            outcome,
            stage="healing",
            request=task.request_id,
            classes=task.signature.classes,
            origin=choice.origin,
            neighbours=choice.neighbours,
            bytes_up=len(described),
        )
        healing = self._coordinator.begin_healing(choice.mask, task.budget.wait_seconds)
        if healing is None:
            self._send_network(assigned, choice)
        else:
            self._patient.append(_Patient(assigned, choice, healing))
            self._tell(assigned)

    def _send_network(self, outcome: DeviceOutcome, choice: Choice) -> None:
        assignment = Assignment(**vars(choice), subnetwork=self._coordinator.cut(choice.mask))
        message, network = encode_assignment(assignment)
        bytes_down = outcome.bytes_down + len(message) + len(network)
        assigned = replace(outcome, stage="adapting", bytes_down=bytes_down)
        self._send(assigned, ADAPT, pack(message, network))

    def _record(self, outcome: DeviceOutcome, content: RecordDict) -> None:
        contributed = message_of(content)
        contribution = decode_contribution(contributed, self._structure)
        if contribution.request_id != outcome.request:
            raise InputError(
                f"node {outcome.node} asked as {outcome.request} and contributes as "
                f"{contribution.request_id}; a device answers for its own request"
            )
        measured = measured_of(content)
        self._coordinator.record(contribution, _contributor(outcome))
        counts = contribution.mask.counts
        adapted = replace(
            outcome,
            stage="adapted",
            partition=measured.partition,
            counts=counts,
            parameters=self._structure.parameters(counts, outcome.classes),
            held_parameters=measured.parameters,
            bytes_up=outcome.bytes_up + len(contributed),
            accuracies=measured.accuracies,
            seconds=measured.seconds,
        )
        self._end(adapted)

    def _send(self, outcome: DeviceOutcome, kind: str, content: RecordDict) -> None:
        """Send one message; Flower gives an empty id, or none, where the node has left."""
        ttl = self._settings.ttl_seconds
        ids = list(self._grid.push_messages([Message(content, outcome.node, kind, ttl=ttl)]))
        if not ids or not ids[0]:
            self._fail(outcome, "unreachable", "the node left before it could be sent a message")
            return
        self._in_flight[ids[0]] = _Visit(outcome, time.monotonic() + ttl + GRACE_SECONDS)
        self._tell(outcome)

    @contextmanager
    def _judging(self, outcome: DeviceOutcome) -> Iterator[None]:
        """Let an error end this device's visit, and no other's."""
        try:
            yield
        except LibraryError as error:
            self._fail(outcome, "server", str(error))
        except MaskvoteError as error:
            self._fail(outcome, "refused", str(error))
        except Exception as error:
            logger.exception("serving node %d", outcome.node)
            self._fail(outcome, "server", repr(error))

    def _fail(self, outcome: DeviceOutcome, failure: Failure, error: str) -> None:
        self._end(replace(outcome, stage="failed", failure=failure, error=error))

    def _end(self, outcome: DeviceOutcome) -> None:
        self.ended.append(outcome)
        self._last_news = time.monotonic()
        logger.info("%s", row(outcome))
        self._tell(outcome)

    def _tell(self, outcome: DeviceOutcome) -> None:
        if self._watch is None:
            return
        try:
            self._watch(outcome)
        except Exception:  # whoever only watches stops nothing
            logger.exception("watching node %d", outcome.node)


def _contributor(outcome: DeviceOutcome) -> str:
    return f"flower:{outcome.node}"


def _reason(error: Error) -> str:
    """Its last line: a device's own sentence, or what a traceback ends with; never control characters."""
    lines = (error.reason or "").strip().splitlines() or [f"an error of code {error.code}"]
    return "".join(c if c.isprintable() else " " for c in lines[-1])[:MAX_REASON_CHARACTERS]
