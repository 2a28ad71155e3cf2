"""A comparison: on each new task, every way to a small network, at the same size and iterations.

The library is only read: no result depends on the order of tasks. Each cell (a seed, a task, a way)
is one record; a cell that is recorded is not run again, and one that fails is reported and left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.adaptation import Adapted
from common.backbone import Weights
from common.exchange import Budget, Method
from common.fine_tune import FineTuneSettings
from common.importance import magnitude
from common.mask import Mask
from common.pruning import PruningSettings
from common.signature import TaskSignature
from server.budget import allot
from server.library import Library
from server.similarity import ClassStatistics
from server.voting import SCORE_OF, Ballot, elect, with_runners_up
from simulations.baselines import ALTERNATIVES, Alternative, Contest, farthest, iterative
from simulations.tasks import ClassPool, TaskChoice


@dataclass(frozen=True)
class ComparisonSettings:
    """What is held equal over all ways, and what voting does."""

    keep_ratio: float = 0.1
    neighbours: int = 5
    explore: float = 0.1
    headroom: float = 1.5
    evaluate_at: tuple[int, ...] = (0, 25, 50)
    iterative_iterations: int = 600
    iterative_rounds: int = 15


@dataclass(frozen=True)
class Cell:
    """One measurement: accuracies by iterations done, and what it took."""

    seed: int
    task: str
    way: str
    accuracies: Mapping[int, float]
    parameters: int
    seconds: Mapping[str, float]
    similarities: tuple[float, ...]


class Comparison:
    """Every way to a small network for new tasks, against one library."""

    def __init__(
        self,
        library: Library,
        weights: Weights,
        settings: ComparisonSettings,
        tuning: FineTuneSettings,
    ) -> None:
        self._offer = library.offer
        self._weights = weights
        self._settings = settings
        self._tuning = tuning
        self._entries = library.entries()
        self._importance = magnitude(weights, self._offer.structure)
        self._similarity = ClassStatistics(self._offer.probe.center)
        for entry in self._entries:
            self._similarity.add(entry.entry, entry.signature)

    def ways(self) -> dict[str, Callable[[Contest, TaskSignature], Adapted]]:
        """Name -> how it is done, voters first."""
        pruned = iterative(self._settings.iterative_iterations, self._settings.iterative_rounds)

        def plain(alternative: Alternative) -> Callable[[Contest, TaskSignature], Adapted]:
            return lambda contest, signature: alternative(contest)

        return {
            "SMSP": lambda contest, s: contest.adapt(self._voted(s, contest, "smsp")),
            "SMSP exploring": self._exploring,
            "MVP": self._mvp,
            "farthest": lambda contest, s: contest.adapt(self._voted(s, contest, "smsp", nearest=False)),
            **{name: plain(alternative) for name, alternative in ALTERNATIVES.items()},
            f"iterative {self._settings.iterative_iterations}": plain(pruned),
        }

    def contest(self, pool: ClassPool, choice: TaskChoice, seed: int) -> Contest:
        """The terms of one new task; its training images are none of the library's."""
        task = pool.task(choice, owners=2, owner=1)
        name = hashlib.sha256(f"{seed} {choice.name}".encode()).digest()
        return Contest(
            self._offer.backbone,
            self._weights,
            self._offer.structure,
            task,
            allot(
                self._offer.structure,
                Budget(keep_ratio=self._settings.keep_ratio),
                len(task.classes),
            ),
            self._tuning,
            int.from_bytes(name[:4], "big"),
            self._settings.evaluate_at,
        )

    def run(self, contest: Contest, way: str, name: str, seed: int) -> Cell:
        """One cell."""
        signature = self._offer.probe.describe(contest.task.train, len(contest.task.classes))
        similarities = np.sort(self._similarity.to(signature)[1])[::-1]
        adapted = self.ways()[way](contest, signature)
        return Cell(
            seed,
            name,
            way,
            dict(sorted(adapted.accuracies.items())),
            sum(p.numel() for p in adapted.network.parameters()),
            {step: round(took, 3) for step, took in adapted.seconds.items()},
            tuple(round(float(s), 4) for s in similarities[: self._settings.neighbours]),
        )

    def _ballots(self, signature: TaskSignature, nearest: bool) -> list[Ballot]:
        similarities = self._similarity.to(signature)[1]
        count = self._settings.neighbours
        chosen = (
            np.argsort(-similarities, kind="stable")[:count].tolist()
            if nearest
            else farthest(similarities, count)
        )
        return [Ballot(self._entries[i].mask, float(similarities[i])) for i in chosen]

    def _voted(
        self,
        signature: TaskSignature,
        contest: Contest,
        method: Method,
        *,
        nearest: bool = True,
        counts: tuple[int, ...] | None = None,
    ) -> Mask:
        return elect(
            contest.structure,
            self._ballots(signature, nearest),
            method,
            counts or contest.counts,
            self._importance,
        ).mask

    def _exploring(self, contest: Contest, signature: TaskSignature) -> Adapted:
        elected = self._voted(signature, contest, "smsp")
        scores = SCORE_OF["smsp"](self._ballots(signature, nearest=True))
        explored = tuple(int(self._settings.explore * n) for n in contest.counts)
        return contest.adapt(
            with_runners_up(elected, scores, explored, contest.seed, tie_break=self._importance)
        )

    def _mvp(self, contest: Contest, signature: TaskSignature) -> Adapted:
        budget = Budget(
            keep_ratio=self._settings.keep_ratio, headroom=self._settings.headroom
        ).while_adapting
        larger = allot(contest.structure, budget, len(contest.task.classes))
        return contest.adapt(
            self._voted(signature, contest, "mvp", counts=larger),
            target=contest.counts,
            pruning=PruningSettings(),
        )


def recorded(path: Path) -> list[dict[str, Any]]:
    """The records of a run, one JSON object a line; an unfinished last line is left out."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def append(path: Path, record: Cell | Mapping[str, Any]) -> None:
    """Add one record to a run, in one write, on a line of its own."""
    data = asdict(record) if isinstance(record, Cell) else dict(record)
    unfinished = path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")
    with path.open("a") as file:
        file.write("\n" * unfinished + json.dumps(data) + "\n")


def pending(
    path: Path, cells: Iterable[tuple[int, TaskChoice, str]]
) -> list[tuple[int, TaskChoice, str]]:
    """The cells that are not recorded yet."""
    done = {(r["seed"], r["task"], r["way"]) for r in recorded(path) if "way" in r}
    return [cell for cell in cells if (cell[0], cell[1].name, cell[2]) not in done]
