"""Healer: networks healed for one mask alone, for devices that are ready to wait for it.

One process of low priority heals one network after the other (`server.healing.worker`). Whatever becomes
of it, nobody waits longer than they said, and no device fails by it.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Self

from common.backbone import Backbone, Weights
from common.errors import InputError
from common.image_folders import LeftOut
from common.mask import Mask
from common.structure import Structure
from common.tensor_file import write_tensors
from server.healing.futile import Attempt, Futile
from server.healing.public_images import image_files
from server.healing.store import HealedStore, backbone_stamp
from server.healing.worker import Healed, Order, Ready, Started, Stop, Useless, Workplace, work
from server.library import Library
from server.settings import HEALER_SECONDS

QUEUE = 32
"""Networks to heal; whoever asks for another one then gets what is there."""
WRITING_SHARE, WRITING_SECONDS = 0.1, 2.0
"""Of the time that a device waits, what is kept to write its network: the share, at most so much."""
HUNG_SECONDS = 60.0
"""After the time for a network is over, until its worker is ended."""
AFTER_FAILURE_SECONDS = 60.0
"""Until a worker is started anew that came to nothing before it had healed anything."""
ENDING_SECONDS = 2.0

logger = logging.getLogger("maskvote")


@dataclass(frozen=True)
class HealerStatistics:
    """What a healer has done: networks healed, given up and failed, seconds spent, and how many wait."""

    healed: int = 0
    stopped: int = 0
    failed: int = 0
    seconds: float = 0.0
    waiting: int = 0


@dataclass
class _Job:
    """A mask to heal for, and who waits for it until when."""

    mask: bytes
    waiting: dict[Future[None], float] = field(default_factory=dict)


@dataclass
class _Worker:
    """The process, what it is at, and until when it has to report."""

    process: multiprocessing.process.BaseProcess
    pipe: Connection
    is_ready: bool = False
    job: _Job | None = None
    attempt: Attempt | None = None
    job_ends: float = math.inf
    is_told_to_stop: bool = False

    def send(self, what: Order | Stop) -> None:
        with suppress(OSError):  # it has died, which is told by its pipe
            self.pipe.send(what)

    def end(self) -> None:
        # Whatever it is at: what it writes is there whole or not at all.
        self.process.kill()
        self.process.join()
        self.pipe.close()


class Healer:
    """Heals networks on the public images below a directory, into the healed store in another.

    The images and the backbone's features of them are read once, by the worker, when the first network
    is asked for or `start` is called. Raises InputError for no time, TaskDataError for no images. To be
    closed; threads may share it.
    """

    def __init__(
        self,
        store: Path,
        backbone: Backbone,
        structure: Structure,
        weights: Weights,
        images: Path,
        *,
        seconds: float = HEALER_SECONDS,
        queue: int = QUEUE,
    ) -> None:
        if not 0 < seconds < math.inf:
            raise InputError(f"{seconds} seconds to heal a network; give a number above 0")
        left_out = LeftOut()
        image_files(images, left_out=left_out)
        if sentence := left_out.sentence(images):
            logger.warning("%s", sentence)
        self._workplace = Workplace(store, images, backbone.to_json(), structure.to_json())
        self._weights = weights
        self._seconds = seconds
        self._queue = queue
        self._lock = threading.Lock()
        self._jobs: dict[bytes, _Job] = {}
        self._futile = Futile()
        self._done = HealerStatistics()
        self._worker: _Worker | None = None
        self._is_wanted = self._is_closed = self._is_rung = False
        self._no_worker_before = -math.inf
        self._hears, self._bell = multiprocessing.Pipe(duplex=False)
        self._thread = threading.Thread(target=self._run, name="healer", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the worker now, so that the first device does not wait for the images to be read."""
        self._is_wanted = True
        self._ring()

    def request(self, mask: Mask, seconds: float) -> Future[None]:
        """A future that is done once the store has the network of this mask, or else after `seconds`.

        At once, where so many wait that there is no time for it, or where as much time came to nothing
        before. Whoever cancels it waits no more, and what nobody waits for is not healed. Those who want
        the same at one time wait for the same.
        """
        future: Future[None] = Future()
        key = mask.pack()
        is_futile = self._futile.covers(self._attempt(key, seconds))
        with self._lock:
            job = self._jobs.get(key)
            if job is None and len(self._jobs) < self._queue and not is_futile:
                job = self._jobs[key] = _Job(key)
            if job is None or self._is_closed or not seconds > 0:
                future.set_result(None)
                return future
            job.waiting[future] = time.monotonic() + seconds
        future.add_done_callback(lambda done: self._ring() if done.cancelled() else None)
        self._ring()
        return future

    def _attempt(self, mask: bytes, wait_seconds: float) -> Attempt:
        """What can be done for somebody who waits so long from now on."""
        seconds = min(self._seconds, wait_seconds)
        seconds -= min(WRITING_SHARE * seconds, WRITING_SECONDS)
        return Attempt(mask, seconds, backbone_stamp(self._workplace.store))

    @property
    def statistics(self) -> HealerStatistics:
        """What was done so far."""
        return replace(self._done, waiting=len(self._jobs))

    def close(self) -> None:
        """End the worker; nobody waits any more."""
        self._is_closed = True
        self._ring()
        self._thread.join()

    def _ring(self) -> None:
        with self._lock:
            if not (self._is_rung or self._bell.closed):  # a pipe holds only so much
                self._is_rung = True
                self._bell.send_bytes(b"")

    def _run(self) -> None:
        while not self._is_closed:
            try:
                self._go_on()
            except Exception:
                logger.exception("healing failed, and begins anew")
                self._drop_worker()
                self._release(self._jobs)
        self._drop_worker()
        with self._lock:
            self._bell.close()
            self._hears.close()
        self._release(self._jobs)

    def _go_on(self) -> None:
        """Do what is due, then wait for whatever comes next."""
        now = time.monotonic()
        self._let_go(now)
        self._give_work(now)
        worker = self._worker
        pipe = [] if worker is None else [worker.pipe]
        heard = wait([self._hears, *pipe], self._pause(now))
        if self._hears in heard:
            with self._lock:
                self._hears.recv_bytes()
                self._is_rung = False
        if worker is not None and worker.pipe in heard:
            self._hear(worker)

    def _pause(self, now: float) -> float | None:
        """How long nothing is due."""
        with self._lock:
            due = [ends for job in self._jobs.values() for ends in job.waiting.values()]
        if self._worker is not None and self._worker.job is not None:
            due.append(self._worker.job_ends + HUNG_SECONDS)
        return max(0.0, min(due) - now) if due else None

    def _let_go(self, now: float) -> None:
        """Let those go who have waited enough, and stop what nobody waits for any more."""
        over = []
        with self._lock:
            for key, job in list(self._jobs.items()):
                for future, ends in list(job.waiting.items()):
                    if ends <= now or future.cancelled():
                        over.append(future)
                        del job.waiting[future]
                if not job.waiting:
                    del self._jobs[key]
        _resolve(over)
        worker = self._worker
        if worker is None or worker.job is None:
            return
        if now >= worker.job_ends + HUNG_SECONDS:
            logger.warning("warning: the healer's worker hangs and is ended; it is started when needed")
            self._fail(worker)
        elif self._jobs.get(worker.job.mask) is not worker.job and not worker.is_told_to_stop:
            # What has had its time is about to be written, for whoever asks next.
            if now < worker.job_ends:
                worker.send(Stop())
            worker.is_told_to_stop = True

    def _give_work(self, now: float) -> None:
        """Start the worker if there is something to do, and give it the next mask if it has none."""
        with self._lock:
            job = next(iter(self._jobs.values()), None)
            ends = now if job is None else max(job.waiting.values())
        if self._worker is None and (job is not None or self._is_wanted):
            self._is_wanted = False
            if now < self._no_worker_before:
                self._release(self._jobs)
                return
            self._worker = self._started()
        worker = self._worker
        if worker is None or job is None or not worker.is_ready or worker.job is not None:
            return
        attempt = self._attempt(job.mask, ends - now)
        worker.job, worker.attempt = job, attempt
        worker.job_ends, worker.is_told_to_stop = now + attempt.seconds, False
        worker.send(Order(job.mask, attempt.seconds))

    def _started(self) -> _Worker:
        # Spawned: a fork of a process with threads, as those that serve are, may never get anywhere.
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs, self._workplace), name="healer", daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, ours)

    def _hear(self, worker: _Worker) -> None:
        try:
            report = worker.pipe.recv()
        except (EOFError, OSError):
            worker.process.join(ENDING_SECONDS)
            logger.warning(
                "warning: the healer's worker has died (exit code %s); it is started when needed",
                worker.process.exitcode,
            )
            self._fail(worker)
            return
        if isinstance(report, Started):
            with suppress(OSError):
                worker.pipe.send_bytes(write_tensors(self._weights, {}))
        elif isinstance(report, Ready):
            worker.is_ready = True
            logger.info("the healer is ready")
        elif isinstance(report, Useless):
            logger.warning("warning: the healer cannot heal: %s", report.why)
            self._fail(worker)
        elif isinstance(report, Healed):
            self._count(worker, report)

    def _count(self, worker: _Worker, report: Healed) -> None:
        job, worker.job, done = worker.job, None, self._done
        assert job is not None
        assert worker.attempt is not None
        if report.kept:
            done = replace(done, healed=done.healed + 1)
        elif report.stopped:
            done = replace(done, stopped=done.stopped + 1)
        else:
            done = replace(done, failed=done.failed + 1)
            logger.warning("warning: a network is not healed: %s", report.why)
            if report.futile:
                self._futile.add(worker.attempt)
        self._done = replace(done, seconds=done.seconds + report.seconds)
        if report.kept or self._jobs.get(job.mask) is job:
            self._release([job.mask])

    def _fail(self, worker: _Worker) -> None:
        """End a worker that is of no use, and let those go who waited for it."""
        job = worker.job
        if not worker.is_ready:
            self._no_worker_before = time.monotonic() + AFTER_FAILURE_SECONDS
            self._release(self._jobs)
        elif job is not None:
            self._done = replace(self._done, failed=self._done.failed + 1)
            if self._jobs.get(job.mask) is job:
                self._release([job.mask])
        self._drop_worker()

    def _drop_worker(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.end()

    def _release(self, masks: Iterable[bytes]) -> None:
        """Let all go who wait for these."""
        with self._lock:
            jobs = [self._jobs.pop(mask) for mask in list(masks) if mask in self._jobs]
        _resolve(future for job in jobs for future in job.waiting)


def healer_of(
    library: Library,
    store: HealedStore,
    weights: Weights,
    images: Path | None,
    seconds: float = HEALER_SECONDS,
) -> AbstractContextManager[Healer | None]:
    """The healer of a library's backbone, to be entered; without images, None. Errors as of `Healer`."""
    if images is None:
        return nullcontext()
    offer = library.offer
    return Healer(store.directory, offer.backbone, offer.structure, weights, images, seconds=seconds)


def _resolve(futures: Iterable[Future[None]]) -> None:
    for future in futures:
        if future.set_running_or_notify_cancel():
            future.set_result(None)
