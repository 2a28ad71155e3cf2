"""The task index: exact nearest tasks over the library. A cache; it can always be rebuilt."""

from __future__ import annotations

from threading import Lock

import numpy as np

from common.errors import InputError
from common.exchange import Neighbour
from common.signature import TaskSignature
from server.similarity import Similarity


class TaskIndex:
    """Nearest tasks by brute force: every entry is compared, so none is ever missed."""

    def __init__(self, similarity: Similarity) -> None:
        self._similarity = similarity
        self._lock = Lock()
        self._places: dict[str, int] = {}
        self._excluded: set[str] = set()
        self._excluded_places: list[int] = []

    def __len__(self) -> int:
        """How many entries can be found."""
        with self._lock:
            return len(self._places) - len(self._excluded_places)

    def add(self, entry: str, signature: TaskSignature) -> None:
        """Take in a task; one that is there already stays as it is."""
        with self._lock:
            if entry not in self._places:
                self._similarity.add(entry, signature)
                self._places[entry] = len(self._places)
                if entry in self._excluded:
                    self._excluded_places.append(self._places[entry])

    def exclude(self, entry: str) -> None:
        """Let an entry be found no more, also if it is added later."""
        with self._lock:
            if entry not in self._excluded:
                self._excluded.add(entry)
                if entry in self._places:
                    self._excluded_places.append(self._places[entry])

    def include(self, entry: str) -> None:
        """Let an entry that was excluded be found again."""
        with self._lock:
            if entry in self._excluded:
                self._excluded.remove(entry)
                if entry in self._places:
                    self._excluded_places.remove(self._places[entry])

    def nearest(self, task: TaskSignature, count: int) -> tuple[Neighbour, ...]:
        """The `count` most similar entries, most similar first; fewer where there are fewer.

        Equal similarities go by the order in which entries were added. Raises InputError below 1.
        """
        if count < 1:
            raise InputError(f"{count} neighbours asked for; ask for at least 1")
        with self._lock:
            entries, similarities = self._similarity.to(task)
            similarities[self._excluded_places] = -1  # below all others
            best = np.argsort(-similarities, kind="stable")[: len(entries) - len(self._excluded_places)]
            return tuple(Neighbour(entries[i], float(similarities[i])) for i in best[:count])
