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
        self._entries: set[str] = set()

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entry: str, signature: TaskSignature) -> None:
        """Take in a task; one that is there already stays as it is."""
        with self._lock:
            if entry not in self._entries:
                self._similarity.add(entry, signature)
                self._entries.add(entry)

    def nearest(self, task: TaskSignature, count: int) -> tuple[Neighbour, ...]:
        """The `count` most similar entries, most similar first; fewer where there are fewer.

        Equal similarities go by the order in which entries were added. Raises InputError below 1.
        """
        if count < 1:
            raise InputError(f"{count} neighbours asked for; ask for at least 1")
        with self._lock:
            entries, similarities = self._similarity.to(task)
            best = np.argsort(-similarities, kind="stable")[:count]
            return tuple(Neighbour(entries[i], float(similarities[i])) for i in best)
