"""What products of tensors mean for labels: linear layers, convolutions, matrices, attention."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from common.structure import movement
from common.structure.labels import Block, Labelled, Labels
from common.structure.operators import Arguments, Operations, Rule, rules_into, unknown

RULES: dict[str, Rule] = {}
"""As in `common.structure.operators`, for products."""
rule = rules_into(RULES)


def _extent(tensor: Labelled, dim: int, labels: Labels | None) -> Labels | int:
    return tensor.shape[dim] if labels is None else labels


@rule("linear")
def _linear(o: Operations, a: Arguments, shape: Any) -> Labelled:
    source, weight, last = a["input"], a["weight"], len(shape) - 1
    o.read(source, last, weight, 1)
    inside, outside = o.along(weight, 1), o.along(weight, 0)
    o.contract(inside, reads=True)
    o.contract(outside, reads=False)
    result = Labelled(
        tuple(shape),
        (
            *(b for b in source.blocks if last not in b.dims),
            *([Block((last,), outside)] if outside is not None else []),
        ),
        o.product_of(source),
    )
    if a["bias"] is not None:
        o.scale(result, last, a["bias"])
    rows = o.extents(source, without=[*(_block_dims(source, last)), last])
    lost = [source.shape[d] for d in _block_dims(source, last) if d != last]
    o.count_work(result, 2, *rows, *lost, _extent(weight, 1, inside), _extent(weight, 0, outside))
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
        o.contract(inside, reads=True)
    else:
        _couple_conv_groups(o, groups, channels, inside, outside, source.shape[1], shape[1])
    o.contract(outside, reads=False)
    blocks = (Block((1,), outside),) if outside is not None else ()
    result = Labelled(tuple(shape), blocks, o.product_of(source))
    if a["bias"] is not None:
        o.scale(result, 1, a["bias"])
    positions = shape[0] * math.prod(shape[2:]) * math.prod(weight.shape[2:])
    o.count_work(result, 2 * positions, _extent(weight, 0, outside), _extent(weight, 1, inside))
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
        o.contract(inside, reads=True)
        o.partition.unite(outside.reshape(groups, -1), outside[None, : outputs // groups])


@rule("conv_transpose2d")
def _conv_transpose(o: Operations, a: Arguments, shape: Any) -> Labelled:
    weight = a["weight"]
    source = o.keep_whole(a["input"], range(2, len(shape)), "a convolution slides over it")
    if a["groups"] != 1:
        return unknown(o, [source, weight, a["bias"]], shape, "grouped conv_transpose2d")
    inside, outside = o.along(weight, 0), o.along(weight, 1)
    o.couple(o.along(source, 1), inside, "what it is multiplied with is not cuttable")
    o.contract(inside, reads=True)
    o.contract(outside, reads=False)
    blocks = (Block((1,), outside),) if outside is not None else ()
    result = Labelled(tuple(shape), blocks, o.product_of(source))
    if a["bias"] is not None:
        o.scale(result, 1, a["bias"])
    positions = shape[0] * math.prod(source.shape[2:]) * math.prod(weight.shape[2:])
    o.count_work(result, 2 * positions, _extent(weight, 1, outside), _extent(weight, 0, inside))
    return result


@rule("matmul", "bmm", "mm")
def _matmul(o: Operations, a: Arguments, shape: Any) -> Labelled:
    left, right = a["self"], a["other"] if "other" in a else a["mat2"]
    rank_left, rank_right = len(left.shape), len(right.shape)
    if min(rank_left, rank_right) < 2:
        return unknown(o, [left, right], shape, "product with a vector")
    inner_left, inner_right = left.block_at(rank_left - 1), right.block_at(rank_right - 2)
    contracted: Labels | int = left.shape[-1]
    if _alone(inner_left) and _alone(inner_right):
        assert inner_left is not None
        assert inner_right is not None
        o.partition.unite(inner_left.labels, inner_right.labels)
        contracted = inner_left.labels
        for tensor, inner in ((left, inner_left), (right, inner_right)):
            if not tensor.from_input:
                o.contract(inner.labels, reads=True)
        if left.from_input and right.from_input:
            # Two activations' products: cutting pairs of them is sound only as a whole.
            o.partition.unite(inner_left.labels, inner_left.labels[:1])
        left = left.with_blocks(b for b in left.blocks if b is not inner_left)
        right = right.with_blocks(b for b in right.blocks if b is not inner_right)
    else:
        left = o.keep_whole(left, [rank_left - 1], "it is summed with an uncuttable dimension")
        right = o.keep_whole(right, [rank_right - 2], "it is summed with an uncuttable dimension")
    rows = Labelled((*left.shape[:-1], 1), left.blocks)
    columns = Labelled((*right.shape[:-2], 1, right.shape[-1]), right.blocks)
    result = replace(o.elementwise([rows, columns], tuple(shape)), sources=o.product_of(left, right))
    o.count_work(result, 2, *o.extents(result), contracted)
    return result


@rule("einsum")
def _einsum(o: Operations, a: Arguments, shape: Any) -> Labelled:
    inputs, arrow, output = a["equation"].replace(" ", "").partition("->")
    terms, tensors = inputs.split(","), list(a["tensors"])
    plain = arrow and all(term.isalpha() and len(set(term)) == len(term) for term in (*terms, output))
    if not plain or len(tensors) != 2:
        return unknown(o, tensors, shape, f"einsum of {a['equation']!r}")
    contracted: list[Labels | int] = []
    for letter in sorted(set(inputs) - {","} - set(output)):
        sides = [(k, term.index(letter)) for k, term in enumerate(terms) if letter in term]
        blocks = [tensors[k].block_at(dim) for k, dim in sides]
        contracted.append(tensors[sides[0][0]].shape[sides[0][1]])
        if len(sides) == 2 and all(map(_alone, blocks)) and not all(t.from_input for t in tensors):
            left, right = (block.labels for block in blocks if block is not None)
            o.partition.unite(left, right)
            contracted[-1] = left
            for (k, _), block, labels in zip(sides, blocks, (left, right), strict=True):
                o.contract(None if tensors[k].from_input else labels, reads=True)
                tensors[k] = tensors[k].with_blocks(b for b in tensors[k].blocks if b is not block)
        for k, dim in sides:
            tensors[k] = o.keep_whole(tensors[k], [dim], "it is summed with an uncuttable dimension")
    parts = [_in_order(o, term, tensor, output) for term, tensor in zip(terms, tensors, strict=True)]
    result = replace(o.elementwise(parts, tuple(shape)), sources=o.product_of(*tensors))
    o.count_work(result, 2, *o.extents(result), *contracted)
    return result


def _in_order(o: Operations, term: str, tensor: Labelled, output: str) -> Labelled:
    """A tensor over the dimensions of einsum's output: of size 1 those it lacks, without those summed."""
    left = [letter for letter in term if letter in output]
    tensor = movement.drop(o, tensor, [dim for dim, letter in enumerate(term) if letter not in output])
    tensor = movement.permute(tensor, [left.index(letter) for letter in output if letter in left])
    for dim, letter in enumerate(output):
        if letter not in left:
            tensor = movement.insert(tensor, dim)
    return tensor


def _alone(block: Block | None) -> bool:
    return block is not None and len(block.dims) == 1


@rule("scaled_dot_product_attention")
def _attention(o: Operations, a: Arguments, shape: Any) -> Labelled:
    why = "attention mixes positions and the width of a head"
    rank = len(shape)
    parts = [a[part] for part in ("query", "key", "value", "attn_mask") if a[part] is not None]
    leading = []
    for part in parts:
        last = len(part.shape)
        whole = o.keep_whole(part, [last - 2, last - 1], why)
        leading.append(Labelled((*part.shape[:-2], 1, 1), whole.blocks))
    result = replace(o.elementwise(leading, tuple(shape)), sources=o.product_of(*parts))
    keys = a["key"].shape[-2]
    widths = a["query"].shape[-1] + a["value"].shape[-1]
    heads = o.extents(result, without=[rank - 1])
    o.count_work(result, 2 * keys * widths, *heads)
    return result
