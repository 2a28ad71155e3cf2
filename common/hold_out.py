"""Hold out: which images judge a network, and which ones choose between networks while it is tuned."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

HELD_OUT_SHARE = 0.2
"""The share of images that judge."""
COMPARING_SHARE, ENOUGH, FEWEST = 0.1, 4, 3
"""How many training images of a class choose between networks, each being one less to tune on: this
share, but of small classes a fifth up to ENOUGH, and one of a class that has FEWEST."""


def judging(keys: Sequence[bytes], labels: Sequence[int]) -> list[bool]:
    """Whether each image judges: about a fifth of them, and of every class the first by hash at least.

    `keys` says which image is which: its name, or what it shows. An image judges if the hash of its key
    is among the lowest fifth of all hashes there are, or the lowest in its class; of equal ones, the
    first. So one image more or less, whichever it is, moves at most one image into or out of those that
    train, which the guarantee of common/privacy.py rests on. Every fifth image would not do: one more
    moves all that stand behind it.

    All images of a class may judge: a single one does, and n do with a probability of 0.2 ** n. No rule
    avoids that: one that moves as little, and leaves some of any m or more images to train on, lets at
    most m - 1 of a class judge, however many it has.
    """
    hashes = [int.from_bytes(hashlib.sha256(key).digest()[:8], "big") / 2**64 for key in keys]
    lowest: dict[int, int] = {}
    for place, label in enumerate(labels):
        if label not in lowest or hashes[place] < hashes[lowest[label]]:
            lowest[label] = place
    return [
        hashed < HELD_OUT_SHARE or lowest[label] == place
        for place, (label, hashed) in enumerate(zip(labels, hashes, strict=True))
    ]


def held_out(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Which training images choose between networks, bool (N,), drawn at random: tuning never sees them.

    A tenth of each class; of small classes, a fifth up to ENOUGH images, and at least one of a class that
    has FEWEST. Shares are rounded down. `labels` is int64 (N,).
    """
    held = torch.zeros(len(labels), dtype=torch.bool)
    order = torch.randperm(len(labels), generator=generator)
    for label in labels.unique().tolist():
        own = order[labels[order] == label]
        fifth = min(len(own) // 5, ENOUGH)
        count = max(int(len(own) * COMPARING_SHARE), fifth, int(len(own) >= FEWEST))
        held[own[:count]] = True
    return held
