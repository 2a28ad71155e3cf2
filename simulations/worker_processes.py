"""Worker processes: what computes beside each other, one thread each, and ends with who started it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

import torch


@contextmanager
def worker_processes(count: int) -> Iterator[ProcessPoolExecutor]:
    """Processes of one thread each: two threads in each of two would starve each other.

    Where the block raises, or Ctrl-C stops it, they are killed in the middle of their work; and they
    end by themselves when this process has ended. What they store has to bear that.
    """
    others = {process.pid for process in multiprocessing.active_children()}
    with ProcessPoolExecutor(
        count, multiprocessing.get_context("spawn"), initializer=begin_worker
    ) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            # The pool itself would wait until each has done what it is at.
            for process in multiprocessing.active_children():
                if process.pid not in others:
                    process.kill()
            raise


def begin_worker(*, leads_group: bool = False) -> None:
    """What a worker does first: one thread, deaf to Ctrl-C, and it ends when who started it has ended.

    Where it leads a process group, that ends with it.
    """
    torch.set_num_threads(1)
    # A terminal's Ctrl-C goes to every process; the one that started this one kills it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(leads_group,), daemon=True).start()


def _end_with_parent(leads_group: bool) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    if leads_group:
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)
