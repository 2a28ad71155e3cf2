"""Devices of a coordinator, each known by a number: what it asks, and what it might give back."""

import numpy as np
import pytest
import torch
from random_tasks import random_mask, random_signature

from common.budget import Budget
from common.exchange import METHODS, Assignment, Contribution, Offer, TaskDescription
from common.mask import Mask
from common.signature import TaskSignature
from server.library import Library, seed_entry

CLASSES = 4
SEEDS = 6

both_methods = pytest.mark.parametrize("method", METHODS)


def request_id(number: int) -> str:
    return f"{number:032x}"


def signature(offer: Offer, number: int, classes: int = CLASSES) -> TaskSignature:
    return random_signature(offer.probe, np.random.default_rng(number), classes)


def near(offer: Offer, task: TaskSignature) -> TaskSignature:
    """The signature of another task of nearly the same classes."""
    noise = np.random.default_rng(0).normal(scale=0.05, size=task.means.shape)
    return TaskSignature(task.probe, (task.means + noise).astype(np.float16), task.counts)


def ask(offer: Offer, number: int, budget: Budget, method="smsp", classes=CLASSES) -> TaskDescription:
    return TaskDescription(request_id(number), signature(offer, 100 + number, classes), budget, method)


def answer_to(assignment: Assignment) -> Contribution:
    """What a device might return: the target's units of what it holds, drawn at random."""
    held = assignment.subnetwork.mask
    lot = np.random.default_rng(int(assignment.request_id, 16))
    scores = {name: np.where(held[name], lot.random(len(held[name])), -1) for name in held}
    mask = Mask.keep_top(held.structure, scores, assignment.target)
    return Contribution(assignment.request_id, mask, 0.25, 0.75, 50)


def same_answer(one: Assignment, other: Assignment) -> bool:
    plain = ("request_id", "method", "origin", "target", "rounds", "neighbours")
    mine, theirs = one.subnetwork.weights, other.subnetwork.weights
    return (
        all(getattr(one, name) == getattr(other, name) for name in plain)
        and one.subnetwork.mask == other.subnetwork.mask
        and mine.keys() == theirs.keys()
        and all(torch.equal(mine[name], theirs[name]) for name in mine)
    )


def stock(library: Library) -> None:
    offer = library.offer
    for number in range(SEEDS):
        task = signature(offer, number)
        mask = random_mask(offer.structure, np.random.default_rng(number), keep_ratio=0.3)
        library.seed(seed_entry(str(number), task), task, mask,
                     accuracy_before=0.25, accuracy_after=0.5, iterations=10)  # fmt: skip
