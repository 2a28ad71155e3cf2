"""The task index: exact nearest tasks over the library. A cache; it can always be rebuilt."""

from __future__ import annotations

from bisect import insort
from threading import Lock

import numpy as np

from common.errors import InputError
from common.exchange import Neighbour
from common.signature import TaskSignature
from server.similarity import Similarity


class TaskIndex:
    """Nearest tasks by brute force: every task is compared, so none is ever missed.

    Entries of one and the same signature are one task, which its newest entry stands for: a device that
    adapts to its data time and again has one voice, however near it is to whoever asks.
    """

    def __init__(self, similarity: Similarity) -> None:
        self._similarity = similarity
        self._lock = Lock()
        self._tasks: dict[str, int] = {}
        """Signature's digest -> place among the similarities."""
        self._entries: list[list[tuple[int, str]]] = []
        """Place -> positions and names of the task's entries, the newest last."""
        self._found_at: dict[str, int] = {}
        """Entry -> place."""
        self._left: set[int] = set()
        """Places of tasks that have no entry any more."""

    def __len__(self) -> int:
        """How many entries there are, those included that a newer one stands for."""
        with self._lock:
            return len(self._found_at)

    def __contains__(self, entry: str) -> bool:
        """Whether an entry is taken in and not removed."""
        with self._lock:
            return entry in self._found_at

    def add(self, entry: str, signature: TaskSignature, position: int) -> None:
        """Take in an entry, the larger its position the newer; one that is there stays as it is."""
        with self._lock:
            if entry in self._found_at:
                return
            place = self._tasks.get(signature.digest)
            if place is None:
                self._similarity.add(entry, signature)
                place = self._tasks[signature.digest] = len(self._entries)
                self._entries.append([])
            insort(self._entries[place], (position, entry))
            self._found_at[entry] = place
            self._left.discard(place)

    def remove(self, entry: str) -> None:
        """Let an entry be found no more, until it is added again; one that is not there is no matter."""
        with self._lock:
            place = self._found_at.pop(entry, None)
            if place is None:
                return
            self._entries[place] = [other for other in self._entries[place] if other[1] != entry]
            if not self._entries[place]:
                self._left.add(place)

    def nearest(self, task: TaskSignature, count: int) -> tuple[Neighbour, ...]:
        """The newest entries of the `count` most similar tasks, most similar first; fewer where there
        are fewer.

        Equal similarities go by the order in which tasks were added. Raises InputError below 1.
        """
        if count < 1:
            raise InputError(f"{count} neighbours asked for; ask for at least 1")
        with self._lock:
            _, similarities = self._similarity.to(task)
            similarities[list(self._left)] = -1  # below all others
            best = np.argsort(-similarities, kind="stable")[: len(similarities) - len(self._left)]
            return tuple(
                Neighbour(self._entries[place][-1][1], float(similarities[place]))
                for place in best[:count].tolist()
            )
