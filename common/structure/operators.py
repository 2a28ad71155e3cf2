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


INPUT = 0
"""The network's input among the sources of activations."""


class Operations(Coupling):
    """The couplings of one graph, with what it computes: its work, and which parameters read.

    `batch` is the number of images that the graph was traced for.
    """

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.batch = batch
        self.work: list[tuple[int, tuple[Labels, ...], bool]] = []
        self.readers: list[Labels] = []
        self.writers: list[Labels] = []
        self._made_of: dict[int, frozenset[int]] = {INPUT: frozenset()}

    def product_of(self, *operands: Labelled | None) -> frozenset[int]:
        """The source that a product of these is; none where it depends on parameters alone."""
        sources = frozenset[int]().union(*(o.sources for o in operands if o is not None))
        if not sources:
            return sources
        product = len(self._made_of)
        self._made_of[product] = sources
        return frozenset({product})

    def are_apart(self, left: Labelled, right: Labelled) -> bool:
        """Whether two activations come from products that no one tensor was multiplied in for both."""
        if left.sources == right.sources:
            return False
        made_left, made_right = (
            frozenset[int]().union(*(self._made_of[source] for source in tensor.sources))
            for tensor in (left, right)
        )
        return made_left.isdisjoint(made_right)

    def contract(self, labels: Labels | None, *, reads: bool) -> None:
        """Note that a parameter's labels are summed over (it reads them) or come out of a sum."""
        if labels is not None:
            (self.readers if reads else self.writers).append(labels)

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

    def count_work(self, result: Labelled, constant: float, *factors: Labels | int | None) -> None:
        """Record floating-point operations: a constant times how many indices of each factor remain.

        What has no image to it is done once for all images, not for each.
        """
        number, labels = constant, []
        for factor in factors:
            if isinstance(factor, np.ndarray):
                labels.append(factor.ravel())
            elif factor is not None:
                number *= factor
        per_image = result.from_input or result.shape[0] == self.batch
        self.work.append((round(number), tuple(labels), per_image))

    def extents(self, tensor: Labelled, without: Sequence[int] = ()) -> list[Labels | int]:
        """How large a tensor is over its dimensions but some, as factors of work."""
        blocks = [b for b in tensor.blocks if set(b.dims).isdisjoint(without)]
        covered = {dim for b in blocks for dim in b.dims} | set(without)
        solid = math.prod(n for dim, n in enumerate(tensor.shape) if dim not in covered)
        return [solid, *(b.labels for b in blocks)]


RULES: dict[str, Rule] = {}
"""Operation name without overload and trailing underscore -> rule(operations, arguments, shape)."""


def rules_into(registry: dict[str, Rule]) -> Callable[..., Callable[[Rule], Rule]]:
    """A decorator `rule(*names)` that registers a function for operations of these names."""

    def rule(*names: str) -> Callable[[Rule], Rule]:
        def register(function: Rule) -> Rule:
            registry.update(dict.fromkeys(names, function))
            return function

        return register

    return rule


rule = rules_into(RULES)


def source_of(a: Arguments) -> Labelled:
    """The tensor that an operation of one tensor works on."""
    return a["self"] if "self" in a else a["input"]


# -- data movement ---------------------------------------------------------------------------------


@rule(
    "reshape", "view", "_unsafe_view", "flatten", "unflatten", "unsqueeze", "squeeze", "view_as",
    "reshape_as",
)  # fmt: skip
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


@rule("repeat_interleave")
def _repeat_interleave(o: Operations, a: Arguments, shape: Any) -> Labelled:
    source, dim = a["self"], a["dim"]
    if dim is None or not isinstance(a["repeats"], int):
        return unknown(o, [source], shape, "repeat_interleave of a whole tensor")
    indices = np.repeat(np.arange(source.shape[dim]), a["repeats"])
    return movement.take(source, dim, indices)


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
    source, sizes = a["self"], [shape[a["dim"]] for shape in shapes]
    if "split_sizes" not in a and len(set(sizes)) > 1:
        source = o.keep_whole(source, [a["dim"] % len(source.shape)], "its parts are not of one size")
    return movement.split(o, source, a["dim"], sizes)


@rule("index")
def _index(o: Operations, a: Arguments, shape: Any) -> Labelled:
    looked_up = [dim for dim, index in enumerate(a["indices"]) if index is not None]
    if len(looked_up) != 1:
        return unknown(o, [a["self"]], shape, "index over several dimensions")
    (dim,) = looked_up
    source = o.keep_whole(a["self"], [dim], "it is looked up by position")
    rank = len(a["indices"][dim].shape)
    result = movement.select(o, source, dim, 0)
    for extra in range(rank):
        result = movement.insert(result, dim + extra)
    return Labelled(tuple(shape), result.blocks, result.sources)


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
    source = source_of(a)
    resized = [d for d in range(len(shape)) if source.shape[d] != shape[d]]
    result = o.keep_whole(source, resized, "its size changes by padding or pooling")
    return Labelled(tuple(shape), result.blocks, result.sources)


@rule("unfold")
def _unfold(o: Operations, a: Arguments, shape: Any) -> Labelled:
    result = o.keep_whole(a["self"], [a["dimension"] % len(a["self"].shape)], "windows slide over it")
    return Labelled(tuple(shape), result.blocks, result.sources)


@rule("im2col")
def _im2col(o: Operations, a: Arguments, shape: Any) -> Labelled:
    """(N, C, H, W) to (N, C x window, positions)."""
    source = o.keep_whole(a["self"], [2, 3], "windows slide over it")
    labels = o.along(source, 1)
    blocks = () if labels is None else (Block((1,), np.repeat(labels, shape[1] // source.shape[1])),)
    return Labelled(tuple(shape), blocks, source.sources)


@rule("col2im")
def _col2im(o: Operations, a: Arguments, shape: Any) -> Labelled:
    """(N, C x window, positions) to (N, C, H, W)."""
    source = o.keep_whole(a["self"], [2], "windows slide over it")
    labels = o.along(source, 1)
    if labels is None:
        return Labelled(tuple(shape), (), source.sources)
    windows = labels.reshape(shape[1], -1)
    o.partition.unite(windows, windows[:, :1])
    return Labelled(tuple(shape), (Block((1,), windows[:, 0]),), source.sources)


# -- everything else -------------------------------------------------------------------------------


@rule("dropout", "contiguous", "clone", "alias", "detach", "to", "_to_copy", "type_as", "identity")
def _same(o: Operations, a: Arguments, shape: Any) -> Labelled:
    return source_of(a)


POINTWISE = frozenset({"hardswish", "hardsigmoid", "mish", "silu", "prelu", "rrelu"})
"""Position-by-position operations that torch does not tag as such."""


def pointwise(o: Operations, name: str, tensors: list[Labelled], shape: Any) -> Labelled:
    """Any operation that works position by position.

    Adding an activation to one from further on is a residual sum; adding parallel branches is none.
    """
    result = o.elementwise(tensors, tuple(shape))
    active = [tensor for tensor in tensors if tensor.from_input]
    if name in ("add", "sub") and len(active) == 2 and o.are_apart(*active):
        o.residual.extend(block.labels.ravel() for block in result.blocks)
    return result


def unknown(o: Operations, tensors: Sequence[Labelled | None], shape: Any, name: str) -> Any:
    """Freeze what an operation without a rule touches."""
    for tensor in tensors:
        o.freeze(tensor, f"no rule for the operation '{name}'")
    sources = o.product_of(*tensors)
    if shape and not isinstance(shape[0], int):
        return [Labelled(tuple(part), (), sources) for part in shape]
    return Labelled(tuple(shape), (), sources)
