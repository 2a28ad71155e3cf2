"""How operations that only move data carry labels: exactly as they carry the data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from common.structure.labels import FROZEN, Block, Coupling, Labelled


def reshape(coupling: Coupling, tensor: Labelled, shape: Sequence[int]) -> Labelled:
    """The tensor under another shape: a split dimension keeps its labels over both parts."""
    shape = tuple(shape)
    spans = _matching_spans(tensor.shape, shape)
    span_of = {dim: index for index, (before, _) in enumerate(spans) for dim in before}
    blocks: list[Block] = []
    for block in tensor.blocks:
        touched = sorted({span_of[dim] for dim in block.dims})
        before = tuple(dim for index in touched for dim in spans[index][0])
        after = tuple(dim for index in touched for dim in spans[index][1])
        labels = block.over(before, tuple(tensor.shape[dim] for dim in before))
        labels = labels.reshape([shape[dim] for dim in after])
        varying = [axis for axis in range(len(after)) if _varies(labels, axis)]
        if not varying:
            coupling.partition.freeze(labels, "a dimension of one index cannot be cut")
            continue
        pick = tuple(slice(None) if axis in varying else 0 for axis in range(len(after)))
        moved = Block(tuple(after[axis] for axis in varying), np.ascontiguousarray(labels[pick]))
        if any(not set(moved.dims).isdisjoint(other.dims) for other in blocks):
            coupling.partition.freeze(moved.labels, "two independent dimensions are flattened into one")
        else:
            blocks.append(moved)
    return Labelled(shape, tuple(blocks), tensor.sources)


def _matching_spans(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The finest runs of dimensions of both shapes that hold the same number of elements."""
    spans, i, j = [], 0, 0
    while i < len(before) or j < len(after):
        left: list[int] = []
        right: list[int] = []
        left_size = right_size = 1
        if i < len(before):
            left.append(i)
            left_size *= before[i]
            i += 1
        if j < len(after):
            right.append(j)
            right_size *= after[j]
            j += 1
        while left_size != right_size:
            if left_size < right_size:
                left.append(i)
                left_size *= before[i]
                i += 1
            else:
                right.append(j)
                right_size *= after[j]
                j += 1
        spans.append((left, right))
    return spans


def _varies(labels: np.ndarray, axis: int) -> bool:
    rows = np.moveaxis(labels, axis, 0)
    return rows.shape[0] > 1 and bool((rows != rows[:1]).any())


def permute(tensor: Labelled, order: Sequence[int]) -> Labelled:
    """The tensor with its dimensions in another order."""
    order = [dim % len(tensor.shape) for dim in order]
    place = {dim: index for index, dim in enumerate(order)}
    blocks = []
    for block in tensor.blocks:
        moved = [place[dim] for dim in block.dims]
        ascending = np.argsort(moved)
        blocks.append(Block(tuple(moved[k] for k in ascending), block.labels.transpose(tuple(ascending))))
    return Labelled(tuple(tensor.shape[dim] for dim in order), tuple(blocks), tensor.sources)


def take(tensor: Labelled, dim: int, indices: np.ndarray) -> Labelled:
    """Some indices of one dimension, in the given order."""
    dim %= len(tensor.shape)
    blocks = [
        Block(b.dims, np.take(b.labels, indices, axis=b.dims.index(dim))) if dim in b.dims else b
        for b in tensor.blocks
    ]
    shape = (*tensor.shape[:dim], len(indices), *tensor.shape[dim + 1 :])
    return Labelled(shape, tuple(blocks), tensor.sources)


def select(coupling: Coupling, tensor: Labelled, dim: int, index: int) -> Labelled:
    """One index of one dimension, which disappears."""
    dim %= len(tensor.shape)
    one = take(tensor, dim, np.array([index % tensor.shape[dim]]))
    return drop(coupling, one, (dim,))


def drop(coupling: Coupling, tensor: Labelled, dims: Sequence[int]) -> Labelled:
    """The tensor without some dimensions, each of them of one index (or already reduced)."""
    gone = {dim % len(tensor.shape) for dim in dims}
    place = {dim: index for index, dim in enumerate(d for d in range(len(tensor.shape)) if d not in gone)}
    blocks = []
    for block in tensor.blocks:
        pick = tuple(0 if dim in gone else slice(None) for dim in block.dims)
        left = tuple(place[dim] for dim in block.dims if dim not in gone)
        if left:
            blocks.append(Block(left, block.labels[pick]))
        else:
            coupling.partition.freeze(block.labels, "one fixed index of the dimension is read")
    return Labelled(
        tuple(size for dim, size in enumerate(tensor.shape) if dim not in gone),
        tuple(blocks),
        tensor.sources,
    )


def insert(tensor: Labelled, dim: int, size: int = 1) -> Labelled:
    """The tensor repeated along a new dimension."""
    blocks = [Block(tuple(d + (d >= dim) for d in b.dims), b.labels) for b in tensor.blocks]
    shape = (*tensor.shape[:dim], size, *tensor.shape[dim:])
    return Labelled(shape, tuple(blocks), tensor.sources)


def expand(tensor: Labelled, shape: Sequence[int]) -> Labelled:
    """The tensor broadcast to a larger shape; dimensions that grow carry no labels."""
    offset = len(shape) - len(tensor.shape)
    blocks = []
    for block in tensor.blocks:
        stays = [dim for dim in block.dims if tensor.shape[dim] == shape[dim + offset]]
        if stays:
            pick = tuple(slice(None) if dim in stays else 0 for dim in block.dims)
            blocks.append(Block(tuple(dim + offset for dim in stays), block.labels[pick]))
    return Labelled(tuple(shape), tuple(blocks), tensor.sources)


def tile(tensor: Labelled, shape: Sequence[int]) -> Labelled:
    """The tensor repeated whole along its dimensions until it fills `shape`."""
    offset = len(shape) - len(tensor.shape)
    blocks = [
        Block(
            tuple(dim + offset for dim in b.dims),
            np.tile(b.labels, [shape[dim + offset] // tensor.shape[dim] for dim in b.dims]),
        )
        for b in tensor.blocks
    ]
    return Labelled(tuple(shape), tuple(blocks), tensor.sources)


def split(coupling: Coupling, tensor: Labelled, dim: int, sizes: Sequence[int]) -> list[Labelled]:
    """Parts of so many indices along `dim`. Equal parts stay equal: their indices are united.

    A network says how many parts it wants, not how large they are.
    """
    dim %= len(tensor.shape)
    block = tensor.block_at(dim)
    if block is not None and len(set(sizes)) == 1:
        parts = np.moveaxis(block.labels, block.dims.index(dim), 0)
        parts = parts.reshape(len(sizes), -1)
        coupling.partition.unite(parts, parts[:1])
    ends = np.cumsum(sizes)
    return [take(tensor, dim, np.arange(end - size, end)) for size, end in zip(sizes, ends, strict=True)]


def concatenate(coupling: Coupling, tensors: Sequence[Labelled], dim: int) -> Labelled:
    """Tensors one after the other along `dim`: each part keeps its own labels there."""
    rank = len(tensors[0].shape)
    dim %= rank
    shape = list(tensors[0].shape)
    shape[dim] = sum(tensor.shape[dim] for tensor in tensors)
    split_alike = {block.dims if (block := tensor.block_at(dim)) else (dim,) for tensor in tensors}
    parts, others = [], []
    for tensor in tensors:
        block = tensor.block_at(dim)
        if block is not None and len(block.dims) > 1 and len(split_alike) > 1:
            # What was split before `dim` are the units, as heads are of all that is inside them.
            whole = [dim] if block.dims[0] < dim else [d for d in block.dims if d != dim]
            tensor = coupling.keep_whole(
                tensor, whole, "a concatenation crosses a dimension that was split"
            )
        parts.append(tensor.block_at(dim))
        others.append(tensor.with_blocks(b for b in tensor.blocks if dim not in b.dims))
    result = coupling.elementwise(
        [Labelled(_with(t.shape, dim, 1), t.blocks, t.sources) for t in others],
        _with(shape, dim, 1),
    )
    blocks = list(result.blocks)
    dims = next((part.dims for part in parts if part is not None), (dim,))
    rows = [
        part.labels if part is not None else np.full(tensor.shape[dim], FROZEN)
        for part, tensor in zip(parts, tensors, strict=True)
    ]
    along = np.concatenate(rows, axis=dims.index(dim))
    if (along != FROZEN).any():
        blocks.append(Block(dims, along))
    return Labelled(tuple(shape), tuple(blocks), result.sources)


def stack(coupling: Coupling, tensors: Sequence[Labelled], dim: int) -> Labelled:
    """Tensors side by side along a new dimension, which cannot be cut: their labels are united."""
    shape = tensors[0].shape
    together = coupling.elementwise(list(tensors), shape)
    return insert(together, dim % (len(shape) + 1), len(tensors))


def _with(shape: Sequence[int], dim: int, size: int) -> tuple[int, ...]:
    return (*shape[:dim], size, *shape[dim + 1 :])
