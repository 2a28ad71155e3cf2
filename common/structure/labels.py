"""Labels: which indices of which tensors stand or fall together.

Every index of every parameter dimension gets a label. Operations that move data carry labels along;
operations that compute unite them. What is connected in the end is one unit: it is cut as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

Labels = np.ndarray
"""An int64 array of labels."""

FROZEN = 0
"""The label of everything that cannot be cut."""


class Partition:
    """Labels and what unites them: a union-find that is solved once, vectorised."""

    def __init__(self) -> None:
        self._count = 1
        self._left: list[Labels] = []
        self._right: list[Labels] = []
        self._freezes: list[tuple[Labels, str]] = []

    def fresh(self, count: int) -> Labels:
        """`count` new labels, each alone."""
        labels = np.arange(self._count, self._count + count, dtype=np.int64)
        self._count += count
        return labels

    def unite(self, left: Labels, right: Labels) -> None:
        """State that labels at the same (broadcast) position belong to the same unit."""
        left, right = np.broadcast_arrays(left, right)
        self._left.append(left.ravel().copy())
        self._right.append(right.ravel().copy())

    def freeze(self, labels: Labels | None, reason: str) -> None:
        """State that these labels cannot be cut; the first reason given for a unit is the one told."""
        if labels is not None:
            flat = np.asarray(labels).ravel().copy()
            self.unite(flat, np.array(FROZEN))
            self._freezes.append((flat, reason))

    def solve(self) -> Labels:
        """Array (labels,): for every label the smallest label of its unit; FROZEN is 0."""
        root = np.arange(self._count, dtype=np.int64)
        if not self._left:
            return root
        left, right = np.concatenate(self._left), np.concatenate(self._right)
        while True:
            root_left, root_right = root[left], root[right]
            differ = root_left != root_right
            if not differ.any():
                return root
            left, right = left[differ], right[differ]
            smaller = np.minimum(root_left, root_right)[differ]
            np.minimum.at(root, root_left[differ], smaller)
            np.minimum.at(root, root_right[differ], smaller)
            while True:
                jumped = root[root]
                if np.array_equal(jumped, root):
                    break
                root = jumped

    def reasons(self) -> dict[int, str]:
        """For every label that was frozen directly: the first reason."""
        reasons: dict[int, str] = {}
        for labels, reason in self._freezes:
            for label in labels.tolist():
                reasons.setdefault(label, reason)
        return reasons


@dataclass(frozen=True)
class Block:
    """Labels over some dimensions of a tensor, ascending; the other dimensions repeat them."""

    dims: tuple[int, ...]
    labels: Labels

    def over(self, dims: tuple[int, ...], shape: tuple[int, ...]) -> Labels:
        """These labels seen over a superset of dimensions, broadcast to `shape` of those dimensions."""
        view = [1] * len(dims)
        for dim, size in zip(self.dims, self.labels.shape, strict=True):
            view[dims.index(dim)] = size
        return np.broadcast_to(self.labels.reshape(view), shape)


@dataclass(frozen=True)
class Labelled:
    """A tensor as discovery sees it: its shape, and blocks over disjoint sets of its dimensions.

    A dimension in no block cannot be cut. `sources` are the products (or the input) that the tensor
    was last computed from; it is empty for what depends on parameters alone.
    """

    shape: tuple[int, ...]
    blocks: tuple[Block, ...] = ()
    sources: frozenset[int] = frozenset()

    @property
    def from_input(self) -> bool:
        """Whether it is an activation: it depends on the network's input."""
        return bool(self.sources)

    @property
    def labelled_dims(self) -> set[int]:
        """The dimensions that some block covers."""
        return {dim for block in self.blocks for dim in block.dims}

    def block_at(self, dim: int) -> Block | None:
        """The block that covers `dim`, or None."""
        return next((block for block in self.blocks if dim in block.dims), None)

    def with_blocks(self, blocks: Iterable[Block]) -> Labelled:
        """The same tensor with other blocks."""
        return replace(self, blocks=tuple(blocks))


class Coupling:
    """What operations do to labels: the few statements that all rules are written in."""

    def __init__(self) -> None:
        self.partition = Partition()
        self.statistics: list[Labels] = []
        self.residual: list[Labels] = []

    def freeze(self, tensor: Labelled | None, reason: str) -> None:
        """Freeze every label that a tensor carries."""
        for block in tensor.blocks if tensor is not None else ():
            self.partition.freeze(block.labels, reason)

    def collapse(self, block: Block, dim: int, reason: str) -> Block | None:
        """The block without `dim`, whose indices from now on stand or fall together.

        None, and frozen, where nothing of the block is left: a dimension that may not shrink.
        """
        axis = block.dims.index(dim)
        labels = np.moveaxis(block.labels, axis, -1)
        self.partition.unite(labels, labels[..., :1])
        if len(block.dims) == 1:
            self.partition.freeze(labels, reason)
            return None
        return Block(tuple(d for d in block.dims if d != dim), np.ascontiguousarray(labels[..., 0]))

    def keep_whole(self, tensor: Labelled, dims: Iterable[int], reason: str) -> Labelled:
        """The tensor with none of `dims` open to cutting on its own."""
        for dim in dims:
            blocks = []
            for block in tensor.blocks:
                left = self.collapse(block, dim, reason) if dim in block.dims else block
                if left is not None:
                    blocks.append(left)
            tensor = tensor.with_blocks(blocks)
        return tensor

    def along(self, tensor: Labelled | None, dim: int) -> Labels | None:
        """Labels (size,) along one dimension, other dimensions of its block united; None if uncut."""
        block = tensor.block_at(dim) if tensor is not None else None
        if block is None:
            return None
        rows = np.moveaxis(block.labels, block.dims.index(dim), 0).reshape(
            block.labels.shape[block.dims.index(dim)], -1
        )
        if rows.shape[1] > 1:
            self.partition.unite(rows, rows[:, :1])
        return rows[:, 0]

    def couple(self, left: Labels | None, right: Labels | None, reason: str) -> None:
        """Unite two label rows; where one is missing the other cannot be cut."""
        if left is None:
            self.partition.freeze(right, reason)
        elif right is None:
            self.partition.freeze(left, reason)
        else:
            self.partition.unite(left, right)

    def merge(self, blocks: Iterable[Block], shape: tuple[int, ...]) -> tuple[Block, ...]:
        """Blocks of several operands, in the result's dimensions, as disjoint blocks of the result."""
        merged: list[Block] = []
        for new in blocks:
            block = _without_broadcast_dims(new, shape)
            if block is None:
                continue
            apart = []
            for old in merged:
                if block is None or set(old.dims).isdisjoint(block.dims):
                    apart.append(old)
                else:
                    block = self._join(old, block, shape)
            merged = [*apart, block] if block is not None else apart
        return tuple(merged)

    def _join(self, left: Block, right: Block, shape: tuple[int, ...]) -> Block | None:
        if left.dims == right.dims:
            self.partition.unite(left.labels, right.labels)
            return right
        small, large = sorted((left, right), key=lambda block: len(block.dims))
        if set(small.dims) < set(large.dims):
            rest = set(large.dims) - set(small.dims)
            if min(small.dims) > min(rest):
                # A vector shared by all heads, say: cutting inside the heads would have to cut every
                # head alike, so the leading dimension stays open and the shared one is kept whole.
                whole = "one parameter is shared along a leading dimension that is open to cutting"
                self.partition.freeze(small.labels, whole)
                open_block: Block | None = large
                for dim in small.dims:
                    if open_block is not None:
                        open_block = self.collapse(open_block, dim, whole)
                return open_block
            sizes = large.labels.shape
            self.partition.unite(small.over(large.dims, sizes), large.labels)
            return large
        dims = tuple(sorted(set(left.dims) | set(right.dims)))
        sizes = tuple(shape[dim] for dim in dims)
        joined = left.over(dims, sizes)
        self.partition.unite(joined, right.over(dims, sizes))
        return Block(dims, np.ascontiguousarray(joined))

    def elementwise(self, operands: list[Labelled], shape: tuple[int, ...]) -> Labelled:
        """The result of an operation that works position by position, with broadcasting."""
        blocks, cut_dims = [], set()
        for operand in operands:
            offset = len(shape) - len(operand.shape)
            for block in operand.blocks:
                moved = Block(tuple(dim + offset for dim in block.dims), block.labels)
                blocks.append(moved)
                cut_dims |= {d for d, n in zip(moved.dims, moved.labels.shape, strict=True) if n > 1}
        sources = frozenset[int]().union(*(operand.sources for operand in operands))
        result = Labelled(shape, self.merge(blocks, shape), sources)
        for operand in operands:
            offset = len(shape) - len(operand.shape)
            solid = [
                dim
                for dim in cut_dims
                if dim >= offset
                and operand.shape[dim - offset] > 1
                and dim - offset not in operand.labelled_dims
            ]
            result = self.keep_whole(result, solid, "it meets a tensor that has no cuttable index there")
        return result


def _without_broadcast_dims(block: Block, shape: tuple[int, ...]) -> Block | None:
    single = [
        axis for axis, dim in enumerate(block.dims) if block.labels.shape[axis] == 1 and shape[dim] != 1
    ]
    if not single:
        return block
    dims = tuple(dim for axis, dim in enumerate(block.dims) if axis not in single)
    return Block(dims, block.labels.squeeze(tuple(single))) if dims else None
