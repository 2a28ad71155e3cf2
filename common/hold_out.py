"""Hold out: which images judge a network, where the data brings none for that."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

HELD_OUT_SHARE = 0.2
"""The share of images that judge."""


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
