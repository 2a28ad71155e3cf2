"""Isotonic regression: the rising values that are nearest to measured ones."""

from __future__ import annotations

from collections.abc import Sequence


def isotonic(values: Sequence[float]) -> tuple[float, ...]:
    """The values that never fall, nearest to these by the sum of squared differences.

    Found by pooling adjacent violators: neighbours that fall are replaced by their mean, until none does.
    Values that rise already stay as they are; none give none.
    """
    pools: list[tuple[float, int]] = []
    for value in values:
        mean, size = value, 1
        while pools and pools[-1][0] > mean:
            before, many = pools.pop()
            mean = (before * many + mean * size) / (many + size)
            size += many
        pools.append((mean, size))
    return tuple(mean for mean, size in pools for _ in range(size))
