"""Selection: which indices of every tensor's dimensions a mask keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.errors import MaskError
from common.mask import Mask
from common.structure import Structure


class Selection:
    """What a mask keeps of the backbone's tensors, or of those that a larger mask has left.

    `within` is that larger mask, and must keep all that `mask` keeps: MaskError otherwise.
    """

    def __init__(self, mask: Mask, within: Mask | None = None) -> None:
        if within is not None and not mask.within(within):
            raise MaskError("the mask keeps units that these weights no longer hold")
        plan = _plan(_Compiled(mask.structure.digest, mask.structure))
        keep_of = np.append(mask.kept, True)
        held_of = np.append(within.kept, True) if within is not None else None
        self._plan = plan
        self._counts: list[int] = []
        self._indices: list[Tensor | None] = []
        for width, units in plan.patterns:
            keep = keep_of[units]
            if held_of is not None:
                keep = keep[held_of[units]]
            index = np.flatnonzero(keep)
            self._counts.append(width * len(index))
            self._indices.append(torch.from_numpy(index) if len(index) < len(keep) else None)

    def shape(self, name: str, shape: Sequence[int]) -> tuple[int, ...]:
        """What is left of a tensor's shape."""
        dims = self._plan.dims.get(name)
        if dims is None:
            return tuple(shape)
        left = list(shape)
        for dim, pattern in dims:
            left[dim] = self._counts[pattern]
        return tuple(left)

    def sizes(self, name: str) -> dict[int, int]:
        """The dimensions of a tensor that any mask may cut, and how much this one keeps of each."""
        return {dim: self._counts[pattern] for dim, pattern in self._plan.dims.get(name, ())}

    def of(self, name: str, tensor: Tensor, place: Tensor | None = None) -> Tensor:
        """What is left of a tensor: a copy, in `place` where that is given (of the shape left).

        Rows are taken first: what is left is less, and still in one piece.
        """
        cuts = [
            (dim, index, self._plan.patterns[pattern].width)
            for dim, pattern in self._plan.dims.get(name, ())
            if (index := self._indices[pattern]) is not None
        ]
        if not cuts:
            return tensor.clone() if place is None else place.copy_(tensor)
        for dim, index, width in cuts[:-1]:
            tensor = _select(tensor, dim, index, width)
        return _select(tensor, *cuts[-1], place)


def _select(tensor: Tensor, dim: int, index: Tensor, width: int, place: Tensor | None = None) -> Tensor:
    """The blocks of `width` at `index`, so that as much as possible is copied in one piece."""
    if width > 1:
        tensor = tensor.unflatten(dim, (-1, width))
    if place is not None:
        blocks = place.unflatten(dim, (-1, width)) if width > 1 else place
        torch.index_select(tensor, dim, index, out=blocks)
        return place
    selected = tensor.index_select(dim, index.to(tensor.device))
    return selected.flatten(dim, dim + 1) if width > 1 else selected


class _Pattern(NamedTuple):
    """The units of a dimension's indices, which come in blocks of `width` of the same unit."""

    width: int
    units: np.ndarray


@dataclass(frozen=True)
class _Plan:
    """A structure's dimensions, with each pattern of units once: layers of one group share it."""

    patterns: tuple[_Pattern, ...]
    dims: Mapping[str, tuple[tuple[int, int], ...]]


@dataclass(frozen=True)
class _Compiled:
    """A structure as the key of a cache: the same where its digest is."""

    digest: str
    structure: Structure = field(compare=False)


@lru_cache(maxsize=16)
def _plan(key: _Compiled) -> _Plan:
    numbers: dict[bytes, int] = {}
    patterns: list[_Pattern] = []
    dims: dict[str, tuple[tuple[int, int], ...]] = {}
    for name, cut in key.structure.dims.items():
        for _, units in cut:
            if numbers.setdefault(units.tobytes(), len(patterns)) == len(patterns):
                patterns.append(_in_blocks(units))
        dims[name] = tuple((dim, numbers[units.tobytes()]) for dim, units in cut)
    return _Plan(tuple(patterns), dims)


def _in_blocks(units: np.ndarray) -> _Pattern:
    starts = np.flatnonzero(np.diff(units)) + 1
    width = int(np.gcd.reduce(starts, initial=len(units)))
    return _Pattern(width, units[::width])
