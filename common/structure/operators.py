"""What each operation of the graph means for labels: one rule an operation.

A rule gets the bound arguments of an aten operation (tensors as `Labelled`) and returns the result's
labels. An operation without a rule freezes everything it touches: conservative, and told.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from common.structure import movement
from common.structure.labels import Block, Coupling, Labelled, Labels

Arguments = dict[str, Any]
Rule = Callable[["Operations", Arguments, Any], Any]

RULES: dict[str, Rule] = {}
"""Operation name without overload and trailing underscore -> rule(operations, arguments, shape)."""


class Operations(Coupling):
    """The couplings of one graph, with what it computes: its work, and which parameters read."""

    def __init__(self) -> None:
        super().__init__()
        self.work: list[tuple[int, tuple[Labels, ...]]] = []
        self.readers: list[Labels] = []
        self.unknown: list[str] = []

    def read(self, activation: Labelled, dim: int, parameter: Labelled, parameter_dim: int) -> None:
        """A parameter's dimension is summed with an activation's: it reads those units."""
        labels = self.along(parameter, parameter_dim)
        self.couple(self.along(activation, dim), labels, "what it is multiplied with is not cuttable")

    def scale(self, activation: Labelled, dim: int, *parameters: Labelled | None) -> None:
        """Parameters (size,) act index by index along an activation's dimension."""
        for parameter in parameters:
            if parameter is not None:
                self.couple(
                    self.along(activation, dim),
                    self.along(parameter, 0),
                    "the tensor it scales is not cuttable",
                )

    def count_work(self, constant: float, *factors: Labels | int | None) -> None:
        """Record floating-point operations: a constant times how many indices of each factor remain."""
        number, labels = constant, []
        for factor in factors:
            if isinstance(factor, np.ndarray):
                labels.append(factor.ravel())
            elif factor is not None:
                number *= factor
        self.work.append((round(number), tuple(labels)))

    def extents(self, tensor: Labelled, without: Sequence[int] = ()) -> list[Labels | int]:
        """How large a tensor is over its dimensions but some, as factors of work."""
        blocks = [b for b in tensor.blocks if set(b.dims).isdisjoint(without)]
        covered = {dim for b in blocks for dim in b.dims} | set(without)
        solid = math.prod(n for dim, n in enumerate(tensor.shape) if dim not in covered)
        return [solid, *(b.labels for b in blocks)]


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operations."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register


def _extent(tensor: Labelled, dim: int, labels: Labels | None) -> Labels | int:
    return tensor.shape[dim] if labels is None else labels


def _source(a: Arguments) -> Labelled:
    return a["self"] if "self" in a else a["input"]


# -- data movement ---------------------------------------------------------------------------------


@rule("reshape", "view", "_unsafe_view", "flatten", "unflatten", "unsqueeze", "squeeze", "view_as")
def _reshape(o: Operations, a: Arguments, shape: Any) -> Labelled:
    return movement.reshape(o, a["self"], shape)


@rule("permute")
def _permute(o: Operations, a: Arguments, shape: Any) -> Labelled:
    return movement.permute(a["self"], a["dims"])


@rule("transpose", "swapaxes", "t")
def _transpose(o: Operations, a: Arguments, shape: Any) -> Labelled:
    order = list(range(len(a["self"].shape)))
    first: Any = a.get("dim0", a.get("axis0", 0))
    second: Any = a.get("dim1", a.get("axis1", 1))
    order[first], order[second] = order[second], order[first]
    return movement.permute(a["self"], order)


@rule("expand", "expand_as")
def _expand(o: Operations, a: Arguments, shape: Any) -> Labelled:
    return movement.expand(a["self"], shape)


@rule("repeat")
def _repeat(o: Operations, a: Arguments, shape: Any) -> Labelled:
    return movement.tile(a["self"], shape)


@rule("cat", "concat")
def _cat(o: Operations, a: Arguments, shape: Any) -> Labelled:
    return movement.concatenate(o, a["tensors"], a["dim"])


@rule("stack")
def _stack(o: Operations, a: Arguments, shape: Any) -> Labelled:
    return movement.stack(o, a["tensors"], a["dim"])


@rule("select")
def _select(o: Operations, a: Arguments, shape: Any) -> Labelled:
    return movement.select(o, a["self"], a["dim"], a["index"])


@rule("unbind")
def _unbind(o: Operations, a: Arguments, shape: Any) -> list[Labelled]:
    size = a["self"].shape[a["dim"]]
    return [movement.select(o, a["self"], a["dim"], index) for index in range(size)]


@rule("slice")
def _slice(o: Operations, a: Arguments, shape: Any) -> Labelled:
    window = slice(a["start"], a["end"], a["step"])
    return movement.take(a["self"], a["dim"], np.arange(a["self"].shape[a["dim"]])[window])


@rule("narrow")
def _narrow(o: Operations, a: Arguments, shape: Any) -> Labelled:
    indices = np.arange(a["start"], a["start"] + a["length"])
    return movement.take(a["self"], a["dim"], indices)


@rule("split", "split_with_sizes", "chunk")
def _split(o: Operations, a: Arguments, shapes: Any) -> list[Labelled]:
    dim = a["dim"] % len(a["self"].shape)
    ends = np.cumsum([shape[dim] for shape in shapes])
    return [
        movement.take(a["self"], dim, np.arange(end - shape[dim], end))
        for shape, end in zip(shapes, ends, strict=True)
    ]


@rule("index")
def _index(o: Operations, a: Arguments, shape: Any) -> Labelled:
    looked_up = [dim for dim, index in enumerate(a["indices"]) if index is not None]
    if len(looked_up) != 1:
        return _unknown(o, [a["self"]], shape, "index over several dimensions")
    (dim,) = looked_up
    source = o.keep_whole(a["self"], [dim], "it is looked up by position")
    rank = len(a["indices"][dim].shape)
    result = movement.select(o, source, dim, 0)
    for extra in range(rank):
        result = movement.insert(result, dim + extra)
    return Labelled(tuple(shape), result.blocks, result.from_input)


@rule("roll", "flip")
def _roll(o: Operations, a: Arguments, shape: Any) -> Labelled:
    return o.keep_whole(a["self"], [d % len(shape) for d in a["dims"]], "its order matters")


# -- pooling, padding, resizing: what keeps the size of a dimension keeps its labels --------------


@rule(
    "max_pool2d", "avg_pool2d", "avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool2d",
    "adaptive_avg_pool1d", "pad", "constant_pad_nd", "reflection_pad2d", "replication_pad2d",
    "upsample_bilinear2d", "upsample_nearest2d", "upsample_bicubic2d", "interpolate",
)  # fmt: skip
def _spatial(o: Operations, a: Arguments, shape: Any) -> Labelled:
    source = _source(a)
    resized = [d for d in range(len(shape)) if source.shape[d] != shape[d]]
    result = o.keep_whole(source, resized, "its size changes by padding or pooling")
    return Labelled(tuple(shape), result.blocks, result.from_input)


# -- reductions ------------------------------------------------------------------------------------


@rule("mean", "sum", "amax", "amin", "var", "std", "logsumexp", "linalg_vector_norm")
def _reduce(o: Operations, a: Arguments, shape: Any) -> Labelled:
    source: Labelled = _source(a)
    dims = a.get("dim")
    if dims is None:
        return _unknown(o, [source], shape, "reduction of a whole tensor")
    dims = [d % len(source.shape) for d in (dims if isinstance(dims, list | tuple) else [dims])]
    for block in source.blocks:
        if set(block.dims) <= set(dims):
            # Cutting changes what is averaged: the result is sound but not that of masking.
            o.statistics.append(block.labels.ravel())
    source = source.with_blocks(b for b in source.blocks if not set(b.dims) <= set(dims))
    source = o.keep_whole(source, dims, "it is reduced together with other dimensions")
    if len(shape) == len(source.shape):
        return Labelled(tuple(shape), source.blocks, source.from_input)
    return movement.drop(o, source, dims)


@rule("softmax", "_softmax", "log_softmax", "cumsum")
def _softmax(o: Operations, a: Arguments, shape: Any) -> Labelled:
    return o.keep_whole(a["self"], [a["dim"] % len(shape)], "it is normalised along the dimension")


# -- normalisation ---------------------------------------------------------------------------------


@rule("batch_norm")
def _batch_norm(o: Operations, a: Arguments, shape: Any) -> Labelled:
    o.scale(a["input"], 1, a["weight"], a["bias"], a["running_mean"], a["running_var"])
    return a["input"]


@rule("layer_norm", "rms_norm")
def _layer_norm(o: Operations, a: Arguments, shape: Any) -> Labelled:
    source, last = a["input"], len(shape) - 1
    parameters = (a.get("weight"), a.get("bias"))
    if len(a["normalized_shape"]) > 1:
        for parameter in parameters:
            o.freeze(parameter, "it is normalised over several dimensions")
        dims = range(len(shape) - len(a["normalized_shape"]), len(shape))
        return o.keep_whole(source, dims, "it is normalised over several dimensions")
    block = source.block_at(last)
    if block is not None and len(block.dims) > 1:
        for parameter in parameters:
            o.freeze(parameter, "it is shared by parts of a split dimension")
        return o.keep_whole(source, [last], "it is normalised inside a split dimension")
    labels = o.along(source, last)
    if labels is not None:
        o.statistics.append(labels)
    o.scale(source, last, *parameters)
    return source


@rule("group_norm")
def _group_norm(o: Operations, a: Arguments, shape: Any) -> Labelled:
    labels = o.along(a["input"], 1)
    if labels is not None:
        o.statistics.append(labels)
        if a["num_groups"] > 1:
            rows = labels.reshape(a["num_groups"], -1)
            o.partition.unite(rows, rows[:1])
    o.scale(a["input"], 1, a["weight"], a["bias"])
    return a["input"]


# -- sums of products ------------------------------------------------------------------------------


@rule("linear")
def _linear(o: Operations, a: Arguments, shape: Any) -> Labelled:
    source, weight, last = a["input"], a["weight"], len(shape) - 1
    o.read(source, last, weight, 1)
    inside, outside = o.along(weight, 1), o.along(weight, 0)
    if inside is not None:
        o.readers.append(inside)
    result = Labelled(
        tuple(shape),
        (
            *(b for b in source.blocks if last not in b.dims),
            *([Block((last,), outside)] if outside is not None else []),
        ),
        True,
    )
    if a["bias"] is not None:
        o.scale(result, last, a["bias"])
    rows = o.extents(source, without=[*(_block_dims(source, last)), last])
    lost = [source.shape[d] for d in _block_dims(source, last) if d != last]
    o.count_work(2, *rows, *lost, _extent(weight, 1, inside), _extent(weight, 0, outside))
    return result


def _block_dims(tensor: Labelled, dim: int) -> tuple[int, ...]:
    block = tensor.block_at(dim)
    return block.dims if block else ()


@rule("conv1d", "conv2d", "conv3d")
def _conv(o: Operations, a: Arguments, shape: Any) -> Labelled:
    weight, groups = a["weight"], a["groups"]
    source = o.keep_whole(a["input"], range(2, len(shape)), "a convolution slides over it")
    o.freeze(
        weight.with_blocks(b for b in weight.blocks if min(b.dims) >= 2),
        "kernel positions are not units",
    )
    inside, outside = o.along(weight, 1), o.along(weight, 0)
    channels = o.along(source, 1)
    if groups == 1:
        o.couple(channels, inside, "what it is multiplied with is not cuttable")
        if inside is not None:
            o.readers.append(inside)
    else:
        _couple_conv_groups(o, groups, channels, inside, outside, source.shape[1], shape[1])
    result = Labelled(tuple(shape), (Block((1,), outside),) if outside is not None else (), True)
    if a["bias"] is not None:
        o.scale(result, 1, a["bias"])
    positions = shape[0] * math.prod(shape[2:]) * math.prod(weight.shape[2:])
    o.count_work(2 * positions, _extent(weight, 0, outside), _extent(weight, 1, inside))
    return result


def _couple_conv_groups(
    o: Operations,
    groups: int,
    channels: Labels | None,
    inside: Labels | None,
    outside: Labels | None,
    inputs: int,
    outputs: int,
) -> None:
    """Depthwise: the input channel goes with its outputs. Grouped: every group alike."""
    if channels is None or outside is None or outputs % groups:
        for labels in (channels, inside, outside):
            o.partition.freeze(labels, "a grouped convolution with an end that is not cuttable")
    elif inputs == groups:
        o.partition.unite(channels[:, None], outside.reshape(groups, outputs // groups))
    else:
        o.couple(
            channels.reshape(groups, inputs // groups),
            None if inside is None else inside[None, :],
            "a grouped convolution with one input channel a group",
        )
        if inside is not None:
            o.readers.append(inside)
        o.partition.unite(outside.reshape(groups, -1), outside[None, : outputs // groups])


@rule("conv_transpose2d")
def _conv_transpose(o: Operations, a: Arguments, shape: Any) -> Labelled:
    weight = a["weight"]
    source = o.keep_whole(a["input"], range(2, len(shape)), "a convolution slides over it")
    if a["groups"] != 1:
        return _unknown(o, [source, weight, a["bias"]], shape, "grouped conv_transpose2d")
    inside, outside = o.along(weight, 0), o.along(weight, 1)
    o.couple(o.along(source, 1), inside, "what it is multiplied with is not cuttable")
    if inside is not None:
        o.readers.append(inside)
    result = Labelled(tuple(shape), (Block((1,), outside),) if outside is not None else (), True)
    if a["bias"] is not None:
        o.scale(result, 1, a["bias"])
    positions = shape[0] * math.prod(source.shape[2:]) * math.prod(weight.shape[2:])
    o.count_work(2 * positions, _extent(weight, 1, outside), _extent(weight, 0, inside))
    return result


@rule("matmul", "bmm", "mm")
def _matmul(o: Operations, a: Arguments, shape: Any) -> Labelled:
    left, right = a["self"], a["other"] if "other" in a else a["mat2"]
    rank_left, rank_right, rank = len(left.shape), len(right.shape), len(shape)
    if min(rank_left, rank_right) < 2:
        return _unknown(o, [left, right], shape, "product with a vector")
    inner_left, inner_right = left.block_at(rank_left - 1), right.block_at(rank_right - 2)
    contracted: Labels | int = left.shape[-1]
    if _alone(inner_left) and _alone(inner_right):
        assert inner_left is not None
        assert inner_right is not None
        o.partition.unite(inner_left.labels, inner_right.labels)
        contracted = inner_left.labels
        for tensor, inner in ((left, inner_left), (right, inner_right)):
            if not tensor.from_input:
                o.readers.append(inner.labels)
        if left.from_input and right.from_input:
            # Two activations' products: cutting pairs of them is sound only as a whole.
            o.partition.unite(inner_left.labels, inner_left.labels[:1])
        left = left.with_blocks(b for b in left.blocks if b is not inner_left)
        right = right.with_blocks(b for b in right.blocks if b is not inner_right)
    else:
        left = o.keep_whole(left, [rank_left - 1], "it is summed with an uncuttable dimension")
        right = o.keep_whole(right, [rank_right - 2], "it is summed with an uncuttable dimension")
    blocks = [
        *(Block(tuple(d + rank - rank_left for d in b.dims), b.labels) for b in left.blocks),
        *(Block(tuple(d + rank - rank_right for d in b.dims), b.labels) for b in right.blocks),
    ]
    result = Labelled(tuple(shape), o.merge(blocks, tuple(shape)), True)
    o.count_work(2, *o.extents(result), contracted)
    return result


def _alone(block: Block | None) -> bool:
    return block is not None and len(block.dims) == 1


@rule("scaled_dot_product_attention")
def _attention(o: Operations, a: Arguments, shape: Any) -> Labelled:
    why = "attention mixes positions and the width of a head"
    rank = len(shape)
    parts = [o.keep_whole(a[part], [rank - 2, rank - 1], why) for part in ("query", "key", "value")]
    mask = a["attn_mask"]
    if mask is not None:
        parts.append(o.keep_whole(mask, [len(mask.shape) - 2, len(mask.shape) - 1], why))
    blocks = [
        Block(tuple(dim + rank - len(part.shape) for dim in block.dims), block.labels)
        for part in parts
        for block in part.blocks
    ]
    result = Labelled(tuple(shape), o.merge(blocks, tuple(shape)), True)
    keys = a["key"].shape[-2]
    widths = a["query"].shape[-1] + a["value"].shape[-1]
    heads = o.extents(result, without=[rank - 1])
    o.count_work(2 * keys * widths, *heads)
    return result


# -- everything else -------------------------------------------------------------------------------


@rule("dropout", "contiguous", "clone", "alias", "detach", "to", "_to_copy", "type_as", "identity")
def _same(o: Operations, a: Arguments, shape: Any) -> Labelled:
    return _source(a)


POINTWISE = frozenset({"hardswish", "hardsigmoid", "mish", "silu", "prelu", "rrelu"})
"""Position-by-position operations that torch does not tag as such."""


def pointwise(o: Operations, name: str, tensors: list[Labelled], shape: Any) -> Labelled:
    """Any operation that works position by position; a sum of two activations is a residual one."""
    result = o.elementwise(tensors, tuple(shape))
    if name in ("add", "sub") and sum(tensor.from_input for tensor in tensors) > 1:
        o.residual.extend(block.labels.ravel() for block in result.blocks)
    return result


def _unknown(o: Operations, tensors: Sequence[Labelled | None], shape: Any, name: str) -> Any:
    """Freeze what an operation without a rule touches."""
    o.unknown.append(name)
    for tensor in tensors:
        o.freeze(tensor, f"no rule for the operation '{name}'")
    if shape and not isinstance(shape[0], int):
        return [Labelled(tuple(part), (), True) for part in shape]
    return Labelled(tuple(shape), (), True)


unknown = _unknown
