"""Voting: neighbours' masks -> a score per unit -> a mask within the budget. The heart of both papers.

Notation: task i has neighbours N(i), K of them; neighbour j brings the mask m_j^l in {0,1}^(n_l) of
group l, and its similarity to i.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.budget import Counts
from common.errors import InputError, MismatchError
from common.exchange import Method, Origin
from common.mask import Mask, Scores
from common.structure import Structure


@dataclass(frozen=True)
class Ballot:
    """One neighbour's part in a vote: its mask, and how similar its task is, in [0, 1]."""

    mask: Mask
    similarity: float

    def __post_init__(self) -> None:
        if not 0 <= self.similarity <= 1:
            raise InputError(f"a similarity of {self.similarity}; it lies in [0, 1]")


def mvp_vote(ballots: Sequence[Ballot]) -> dict[str, np.ndarray]:
    """v^l = sum over neighbours of m_j^l: one task, one vote (MVP, arXiv 2301.11560).

    Float64 (units,) per group, whole numbers in [0, K]. Raises InputError where nobody votes, and
    MismatchError for masks of different structures.
    """
    _check_one_structure(ballots)
    return {
        name: np.stack([ballot.mask[name] for ballot in ballots]).sum(axis=0, dtype=np.float64)
        for name in ballots[0].mask
    }


def smsp_score(ballots: Sequence[Ballot]) -> dict[str, np.ndarray]:
    """s^l = sum over neighbours of w_j m_j^l, w_j = sim_j / sum of sims (SMSP, arXiv 2307.04365).

    Float64 (units,) per group, in [0, 1]. Where no neighbour is similar at all, all weigh alike.
    Errors as of `mvp_vote`.
    """
    _check_one_structure(ballots)
    similarities = np.array([ballot.similarity for ballot in ballots])
    total = similarities.sum()
    weights = similarities / total if total > 0 else np.full(len(ballots), 1 / len(ballots))
    # Rounded, as equal scores must not differ by the order in which weights were added.
    return {
        name: (weights[:, None] * np.stack([ballot.mask[name] for ballot in ballots])).sum(0).round(12)
        for name in ballots[0].mask
    }


def _check_one_structure(ballots: Sequence[Ballot]) -> None:
    if not ballots:
        raise InputError("nobody votes; in an empty library the backbone's importance elects")
    digests = {ballot.mask.structure.digest for ballot in ballots}
    if len(digests) > 1:
        raise MismatchError(
            f"masks of {len(digests)} structures in one vote: "
            f"{', '.join(sorted(digest[:12] for digest in digests))}; let masks of one backbone vote"
        )


SCORE_OF = {"mvp": mvp_vote, "smsp": smsp_score}


@dataclass(frozen=True)
class Elected:
    """The outcome of a vote: a mask, whether neighbours or the backbone's importance chose it, and by
    which scores.
    """

    mask: Mask
    origin: Origin
    scores: Scores


def ranks(importance: Scores) -> dict[str, np.ndarray]:
    """Each unit's rank within its group, as a share in (0, 1]: the highest has 1, equals their mean."""
    found = {}
    for name, row in importance.items():
        values = np.asarray(row)
        ordered = np.sort(values)
        first, last = (np.searchsorted(ordered, values, side) for side in ("left", "right"))
        found[name] = (first + last + 1) / 2 / len(values)
    return found


def elect(
    structure: Structure,
    ballots: Sequence[Ballot],
    method: Method,
    counts: Counts,
    importance: Scores,
    prior: float = 0.0,
) -> Elected:
    """The mask of the `counts` best-scored units of every group.

    `importance` is the backbone's own, as `ranks`. `prior` is what the highest rank is worth beside all
    ballots together: with 0, as in the papers, importance decides ties alone, never index order; with as
    much as a group has units, votes do, as ranks are a unit's share apart. Then, and with no ballots at
    all, importance is the origin. Raises MismatchError for ballots of another structure.
    """
    if not ballots:
        return Elected(Mask.keep_top(structure, importance, counts), "importance", importance)
    everybody = len(ballots) if method == "mvp" else 1.0
    scores = SCORE_OF[method](ballots)
    if prior:
        scores = {name: row / everybody + prior * importance[name] for name, row in scores.items()}
    voted = ballots[0].mask.structure.digest
    if voted != structure.digest:
        raise MismatchError(
            f"the masks are of structure {voted[:12]}, the vote is on {structure.digest[:12]}; "
            "let masks of this backbone vote"
        )
    origin: Origin = "importance" if prior >= max(structure.sizes, default=1) else "vote"
    return Elected(Mask.keep_top(structure, scores, counts, tie_break=importance), origin, scores)


def explored_units(structure: Structure, held: Counts, share: float) -> Counts:
    """How many units of every group are given up for runners-up: a share of those held, as far as there
    are others, and one stays.
    """
    return tuple(
        min(count - 1, units - count, round(share * count))
        for count, units in zip(held, structure.sizes, strict=True)
    )


def with_runners_up(
    elected: Mask, scores: Scores, explored: Counts, seed: int, tie_break: Scores | None = None
) -> Mask:
    """The mask with the last `explored` units of every group given up for others, drawn by score.

    A device can only rank units that it holds. The best are never given up, equal scores going by
    `tie_break` as in the vote; among those not elected, each is drawn with a probability that grows
    with its score, so that a neighbour's choice is tried before one that nobody made. A group of
    one unit, or without others, gives up none.
    """
    generator = np.random.default_rng(seed)
    rows = {}
    for name, count in zip(elected, explored, strict=True):
        row, score = elected[name].copy(), np.asarray(scores[name])
        second = np.zeros(len(score)) if tie_break is None else np.asarray(tie_break[name])
        outside = np.flatnonzero(~row)
        count = min(count, int(row.sum()) - 1, len(outside))
        if count > 0:
            # From the last of the vote's own order: what is equal in everything goes by index.
            inside = np.flatnonzero(row)
            last = np.lexsort((-second[inside], -score[inside]))[-count:]
            row[inside[last]] = False
            chance = score[outside] + 1 / (2 * len(outside))
            # The first to arrive at such rates: draws without replacement, all at once.
            arrivals = generator.exponential(size=len(outside)) / chance
            row[outside[np.argpartition(arrivals, count - 1)[:count]]] = True
        rows[name] = row
    return Mask.of(elected.structure, rows)
