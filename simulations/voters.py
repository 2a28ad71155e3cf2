"""Voters: a run's library as a new task sees it under one way: who is near, and what they vote for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from common.exchange import Method
from common.fitting import all_features
from common.mask import Mask, Scores
from common.probe import Probe
from common.signature import TaskSignature
from common.task_data import Task
from server.library import Entry
from server.settings import VotingSettings
from server.similarity import Similarity
from server.voting import Ballot, elect, explored_units, ranks, smsp_score, with_runners_up
from simulations.baselines import taylor_scores
from simulations.contest import Contest
from simulations.similarities import SIMILARITIES


@dataclass(frozen=True)
class Voters:
    """The entries that may vote, how similar each is to a task in [0, 1], and how many do vote."""

    entries: list[Entry]
    similarities: np.ndarray
    count: int

    def ballots(self, order: np.ndarray) -> list[Ballot]:
        """Those of the first of this order of the entries."""
        return [Ballot(self.entries[i].mask, float(self.similarities[i])) for i in order[: self.count]]

    @property
    def nearest_first(self) -> np.ndarray:
        """Indices of the entries, the most similar first; equals in the library's order."""
        return np.argsort(-self.similarities, kind="stable")

    @property
    def farthest_first(self) -> np.ndarray:
        """The same the other way round."""
        return np.argsort(self.similarities, kind="stable")


def similarities_of(
    measure: str,
    probe: Probe,
    library: list[tuple[str, TaskSignature]],
    task: Task,
    signature: TaskSignature,
) -> np.ndarray:
    """How similar each task of a library is to a task, float64 in [0, 1], by a named measure."""
    known: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def examples_of(_: TaskSignature) -> tuple[np.ndarray, np.ndarray]:
        if "task" not in known:
            rows = all_features(probe.network, task.train).double().numpy()
            known["task"] = rows, task.train.labels.numpy()
        return known["task"]

    similarity: Similarity = SIMILARITIES[measure](probe, examples_of)
    for name, other in library:
        similarity.add(name, other)
    return similarity.to(signature)[1] if library else np.empty(0)


def voted(contest: Contest, voters: Voters, method: Method, order: np.ndarray) -> Mask:
    """The mask that the first of the entries in this order vote for; without any, the importance mask."""
    ballots = voters.ballots(order) if len(order) else []
    return elect(contest.structure, ballots, method, contest.counts, contest.importance).mask


def _sum(one: Scores, other: Scores) -> dict[str, np.ndarray]:
    return {name: np.asarray(row) + np.asarray(other[name]) for name, row in one.items()}


def _scores(voters: Voters) -> dict[str, np.ndarray]:
    return smsp_score(voters.ballots(voters.nearest_first))


def with_prior(contest: Contest, voters: Voters) -> Mask:
    """With the backbone's importance as a prior, as the coordinator votes by default."""
    ballots, prior = voters.ballots(voters.nearest_first), VotingSettings.prior
    importance = ranks(contest.importance)
    return elect(contest.structure, ballots, "smsp", contest.counts, importance, prior).mask


def with_taylor(contest: Contest, voters: Voters) -> Mask:
    """Ranks of the vote and of a Taylor pass through the whole backbone, added."""
    return contest.top(_sum(ranks(_scores(voters)), ranks(taylor_scores(contest))))


def smoothed(contest: Contest, voters: Voters) -> Mask:
    """All tasks vote, weighted by their similarity: no K to choose."""
    return contest.top(_scores(replace(voters, count=len(voters.entries))))


def over_all_groups(contest: Contest, voters: Voters) -> Mask:
    """The best-scored units wherever they are, as many in all: keep ratios per group that votes decide.

    Ties go to the higher rank by importance within its group. Every group keeps a unit.
    """
    scores, standing = _scores(voters), ranks(contest.importance)
    rows = [scores[g.name] + 1e-3 * standing[g.name] for g in contest.structure.groups]
    order = np.argsort(-np.concatenate(rows), kind="stable")
    group_of = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    spare = sum(contest.counts) - len(rows)
    first = {int(group_of[i]): int(i) for i in order[::-1]}
    rest = [i for i in order.tolist() if i not in set(first.values())][:spare]
    counts = np.bincount(group_of[[*first.values(), *rest]], minlength=len(rows))
    return replace(contest, counts=tuple(counts.tolist())).top(scores)


def exploring(contest: Contest, voters: Voters) -> Mask:
    """A tenth of the units given up for runners-up, as devices get them so that the library learns."""
    elected = voted(contest, voters, "smsp", voters.nearest_first)
    explored = explored_units(contest.structure, contest.counts, VotingSettings.explore)
    return with_runners_up(elected, _scores(voters), explored, contest.seed, tie_break=contest.importance)


VOTES: dict[str, Callable[[Contest, Voters], Mask]] = {
    "SMSP": lambda contest, voters: voted(contest, voters, "smsp", voters.nearest_first),
    "MVP one-shot": lambda contest, voters: voted(contest, voters, "mvp", voters.nearest_first),
    "farthest": lambda contest, voters: voted(contest, voters, "smsp", voters.farthest_first),
    "nearest alone": lambda contest, voters: voted(
        contest, replace(voters, count=1), "smsp", voters.nearest_first
    ),
    "everyone": lambda contest, voters: voted(
        contest, replace(voters, count=max(1, len(voters.entries))), "mvp", voters.nearest_first
    ),
    "SMSP and importance": with_prior,
    "SMSP and Taylor": with_taylor,
    "SMSP smoothed": smoothed,
    "SMSP over all groups": over_all_groups,
    "SMSP exploring": exploring,
}
"""Name in tables and figures -> masks that the library votes for."""
