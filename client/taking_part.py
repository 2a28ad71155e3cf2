"""Taking part through a server: the steps, what is remembered of them, and what shows on the terminal."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import Progress, TaskID

from client.adapt import Adaptation, adapt, check_timm, describe, generator_of
from client.disclosure import warning_of
from client.grpc_client import RemoteCoordinator
from client.probe_cache import ProbeCache
from client.state import Setting, State
from client.task_options import Asked, Server
from common.budget import LatencyTable, check_feasible
from common.errors import InputError
from common.exchange import Offer, Receipt, TaskDescription
from common.progress import progress
from common.proto_codec import REQUEST_ID_BYTES
from common.task_data import Task
from common.temporary_files import temporary_directory
from common.threads_option import compute_with
from common.tuning_settings import FineTuneSettings

if TYPE_CHECKING:
    from torch import Tensor

    from common.images import LabelledImages


@dataclass
class Bars:
    """What a device is at: a bar for each thing that takes time."""

    bars: Progress
    _ids: dict[str, TaskID] = field(default_factory=dict)

    def show(self, what: str, done: int, total: int) -> None:
        """How much of it is done."""
        if what not in self._ids:
            self._ids[what] = self.bars.add_task(what, total=total)
        self.bars.update(self._ids[what], completed=done, total=total)

    def transfer(self, what: str, done: int, total: int) -> None:
        """How many bytes have come."""
        self.show(f"Downloading the {what} (bytes)", done, total)

    def describing(self, task: Task) -> Task:
        """The task, whose training images count as described when they are first asked for."""
        return replace(task, train=_Counted(task.train, self))

    def tuned(self, done: int, total: int) -> None:
        """How many iterations are done."""
        self.show("Fine-tuning (iterations)", done, total)

    def tell(self, sentence: str) -> None:
        """A sentence for whoever waits."""
        self.bars.console.print(sentence, markup=False, highlight=False, soft_wrap=True)


class _Counted:
    """Labelled images that tell how many were asked for, up to all of them."""

    def __init__(self, images: LabelledImages, bars: Bars) -> None:
        self.labels = images.labels
        self._images = images
        self._bars = bars
        self._asked = 0

    def __len__(self) -> int:
        return len(self._images)

    def batch(self, indices: Tensor) -> Tensor:
        batch = self._images.batch(indices)
        if self._asked < len(self):
            self._asked = min(len(self), self._asked + len(indices))
            self._bars.show("Signature (images)", self._asked, len(self))
        return batch


@contextmanager
def opened_state(directory: Path | None) -> Iterator[State]:
    """The state in a directory; without one, in a directory that ends with it."""
    if directory is not None:
        with State(directory) as state:
            yield state
        return
    with temporary_directory() as passing, State(passing) as state:
        yield state


def description_of(asked: Asked, server: Server, state: State, threads: int = 0) -> TaskDescription:
    """What the server would be asked, which is kept to be asked indeed; it is not told any of it yet."""
    state.remember(**_settings(asked))
    if (kept := state.description) is not None:
        return kept
    asked.check_data()
    server.check()
    with _reached(server, state) as (coordinator, bars):
        offer = state.offer or state.keep(coordinator.offer())
        task = _task(asked, offer, state, bars, threads)
        return state.keep(
            describe(offer, task, asked.budget, asked.method, new_request_id(), asked.privacy)
        )


def offer_of(server: Server) -> Offer:
    """What the server offers, and in its state what it offered before."""
    with opened_state(server.state) as state, _reached(server, state) as (coordinator, _):
        return state.offer or state.keep(coordinator.offer())


def adapt_through(
    server: Server,
    asked: Asked,
    settings: FineTuneSettings,
    seed: int,
    state: State,
    threads: int = 0,
) -> tuple[Adaptation, Receipt]:
    """All steps that are not done yet. Once all are, nobody is asked.

    What is missing is needed only by the steps that are left: without a request, the assignment that
    was given for it is adapted all the same.
    """
    state.remember(
        **_settings(asked),
        seed=seed,
        iterations=settings.iterations,
        learning_rate=settings.learning_rate,
    )
    # Without the offer nothing else can be read: then the server is asked for it before.
    if state.structure is not None:
        adaptation, receipt = state.adaptation, state.receipt
        if adaptation is not None and receipt is not None:
            return adaptation, receipt
    if not state.adapted:
        asked.check_data()
    server.check()
    with _reached(server, state) as (coordinator, bars):
        adapted = adapt(
            coordinator,
            lambda offer: _task(asked, offer, state, bars, threads, settings.max_memory),
            asked.budget,
            settings,
            generator_of(seed, asked.place),
            method=asked.method,
            privacy=asked.privacy,
            request_id=new_request_id(),
            steps=state,
            progress=bars.tuned,
        )
        if (warning := _warning(asked, state)) is not None:
            bars.tell(warning)
        in_this_process = adapted[0].adapted
        for remark in in_this_process.remarks if in_this_process is not None else ():
            bars.tell(remark)
        return adapted


def _warning(asked: Asked, state: State) -> str | None:
    """Whether noise drowned what was asked; a request that is lost by now takes nothing from the rest."""
    description = None
    with suppress(InputError):
        description = state.description
    return None if description is None else warning_of(description, asked.privacy)


def new_request_id() -> str:
    """An id that nobody can guess."""
    return secrets.token_hex(REQUEST_ID_BYTES)


def _settings(asked: Asked) -> dict[str, Setting]:
    return {
        "data": str(asked.place),
        **{name: _remembered(limit) for name, limit in vars(asked.budget).items()},
        "method": asked.method,
        "privacy": str(asked.privacy or "none"),
    }


def _remembered(limit: float | LatencyTable | None) -> Setting:
    return limit if limit is None or isinstance(limit, int | float) else str(limit.points)


def _task(
    asked: Asked,
    offer: Offer,
    state: State,
    bars: Bars,
    threads: int,
    max_memory: float | None = None,
) -> Task:
    """The task, after all that could make its computation be for nothing."""
    compute_with(threads)
    check_timm(offer.structure)
    task = asked.task(offer.backbone, max_memory)
    if task.left_out:
        bars.tell(task.left_out)
    _check_classes(task, state)
    state.remember(classes=list(task.classes))
    if state.begun:
        return task
    check_feasible(offer.structure, asked.budget, len(task.classes))
    return bars.describing(task)


def _check_classes(task: Task, state: State) -> None:
    """Raise InputError where classes have come or gone since the server was told of the task."""
    if not state.begun or (described := state.classes) is None:
        return
    gone = [name for name in described if name not in task.classes]
    new = [name for name in task.classes if name not in described]
    if gone or new:
        changes = [
            f"{', '.join(names[:3])} {what}" for names, what in ((gone, "gone"), (new, "new")) if names
        ]
        raise InputError(
            f"the classes are not those that were described to the server: {'; '.join(changes)}; put the "
            "images back as they were, or begin again with another --state"
        )


@contextmanager
def _reached(server: Server, state: State) -> Iterator[tuple[RemoteCoordinator, Bars]]:
    with progress() as shown:
        bars = Bars(shown)
        with RemoteCoordinator(
            server.connection,
            state.directory,
            known=state.offer,
            probes=ProbeCache.of_user(bars.tell),
            patience_seconds=server.patience_seconds,
            transfer=bars.transfer,
            tell=bars.tell,
        ) as coordinator:
            yield coordinator, bars
