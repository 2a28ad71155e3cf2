"""What reductions and norms mean for labels: a group whose statistics cutting changes is not exact."""

from __future__ import annotations

from typing import Any

from common.structure import movement
from common.structure.labels import Labelled
from common.structure.operators import Arguments, Operations, Rule, rules_into, source_of, unknown

RULES: dict[str, Rule] = {}
"""As in `common.structure.operators`, for reductions and norms."""
rule = rules_into(RULES)


@rule("mean", "sum", "amax", "amin", "var", "std", "logsumexp", "linalg_vector_norm")
def _reduce(o: Operations, a: Arguments, shape: Any) -> Labelled:
    source: Labelled = source_of(a)
    dims = a.get("dim")
    if dims is None:
        return unknown(o, [source], shape, "reduction of a whole tensor")
    dims = [d % len(source.shape) for d in (dims if isinstance(dims, list | tuple) else [dims])]
    for block in source.blocks:
        if set(block.dims) <= set(dims):
            # Cutting changes what is averaged: the result is sound but not that of masking.
            o.statistics.append(block.labels.ravel())
    source = source.with_blocks(b for b in source.blocks if not set(b.dims) <= set(dims))
    source = o.keep_whole(source, dims, "it is reduced together with other dimensions")
    if len(shape) == len(source.shape):
        return Labelled(tuple(shape), source.blocks, source.sources)
    return movement.drop(o, source, dims)


@rule("softmax", "_softmax", "log_softmax", "cumsum")
def _softmax(o: Operations, a: Arguments, shape: Any) -> Labelled:
    return o.keep_whole(a["self"], [a["dim"] % len(shape)], "it is normalised along the dimension")


# -- normalisation ---------------------------------------------------------------------------------


@rule("batch_norm")
def _batch_norm(o: Operations, a: Arguments, shape: Any) -> Labelled:
    if a["running_mean"] is None:
        # Statistics of the tensor itself, as where a convolution's weight is standardised.
        o.statistics.extend(b.labels.ravel() for b in a["input"].blocks if 1 not in b.dims)
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
