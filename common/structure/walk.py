"""Walk: one pass over a network's graph, in which every operation says what it means for labels."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch

from common.structure import operators, products, reductions
from common.structure.activations import Activations
from common.structure.labels import Block, Labelled, Labels
from common.structure.operators import INPUT, POINTWISE, Operations, pointwise, unknown

TRACE_BATCH = 5
"""Images in the traced batch: a number that networks have no other use for, to know the batch by."""

RULES = operators.RULES | products.RULES | reductions.RULES
TensorDim = tuple[str, int]


class Walk:
    """One pass over the graph: labels of every tensor, and what was united on the way."""

    def __init__(self, program: torch.export.ExportedProgram, names: Mapping[str, Sequence[str]]) -> None:
        self.operations = Operations(TRACE_BATCH)
        self.weights: dict[TensorDim, Labels] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.activations = Activations(program.graph)
        signature = program.graph_signature
        self.parameters = set(signature.inputs_to_parameters.values())
        self._names_of_one = names
        self._names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self._constants = set(signature.inputs_to_lifted_tensor_constants)
        self._values: dict[torch.fx.Node, Any] = {}
        self._split_blocks: list[Block] = []
        for node in program.graph.nodes:
            value = self._value(node)
            self._values[node] = value
            self.activations.note(node, value)
            for tensor in value if isinstance(value, list) else [value]:
                if isinstance(tensor, Labelled):
                    self._split_blocks += [b for b in tensor.blocks if len(b.dims) > 1]

    def _value(self, node: torch.fx.Node) -> Any:
        if node.op == "placeholder":
            return self._placeholder(node)
        if node.op == "call_function":
            return self._call(node)
        if node.op == "output":
            for result in node.all_input_nodes:
                self.operations.freeze(self._values[result], "it is the network's output")
        return None

    def _placeholder(self, node: torch.fx.Node) -> Labelled | None:
        if not isinstance(node.meta.get("val"), torch.Tensor):
            return None
        shape = tuple(node.meta["val"].shape)
        name = self._names.get(node.name)
        if name is None:
            is_input = node.name not in self._constants
            return Labelled(shape, (), frozenset({INPUT}) if is_input else frozenset())
        name = self._names_of_one.get(name, (name,))[0]
        self.shapes[name] = shape
        blocks = []
        for dim, size in enumerate(shape):
            if size > 1:
                if (name, dim) not in self.weights:
                    self.weights[name, dim] = self.operations.partition.fresh(size)
                blocks.append(Block((dim,), self.weights[name, dim]))
        return Labelled(shape, tuple(blocks))

    def _call(self, node: torch.fx.Node) -> Any:
        target: Any = node.target
        if target is operator.getitem:
            source, index = cast(tuple[torch.fx.Node, int], node.args)
            value = self._values[source]
            return value[index] if isinstance(value, list) else value
        result = node.meta.get("val")
        if isinstance(result, torch.Tensor):
            shape: Any = tuple(result.shape)
        elif isinstance(result, list | tuple):
            shape = [tuple(part.shape) for part in result if isinstance(part, torch.Tensor)]
        else:
            return None
        name = target._schema.name.split("::")[1].rstrip("_")
        arguments = self._bound(node)
        if name in RULES:
            return RULES[name](self.operations, arguments, shape)
        tensors = [v for n in node.all_input_nodes if isinstance(v := self._values[n], Labelled)]
        by_position = torch.Tag.pointwise in target.tags or name in POINTWISE
        if by_position and isinstance(shape, tuple):
            return pointwise(self.operations, name, tensors, shape)
        return unknown(self.operations, tensors, shape, name)

    def _bound(self, node: torch.fx.Node) -> dict[str, Any]:
        """Arguments by the names of the operation's schema, nodes replaced by their labels."""
        bound = {}
        target: Any = node.target
        for place, argument in enumerate(target._schema.arguments):
            given = node.kwargs.get(argument.name, argument.default_value)
            if place < len(node.args):
                given = node.args[place]
            bound[argument.name] = torch.fx.node.map_arg(given, lambda n: self._values[n])
        return bound

    def make_rectangular(self) -> None:
        """Let no unit be cut from a split dimension in a way that leaves it ragged.

        A tensor's dimension split in two, (heads, width) say, can lose whole rows or whole columns.
        Where the labels say otherwise, it is left with the one of both that asks for fewer unions.
        """
        while True:
            root = self.operations.partition.solve()
            ragged = [b.labels for b in self._split_blocks if _unions(root[b.labels])]
            if not ragged:
                return
            for labels in ragged:
                axis = _unions(root[labels])[0]
                rows = _rows(labels, axis)
                self.operations.partition.unite(rows, rows[:, :1])


def _unions(labels: Labels) -> list[int]:
    """The axes to cut along, best first, by how many unions that takes; empty if it takes none."""
    if (labels == labels.flat[0]).all():
        return []
    unions = {}
    for axis in range(labels.ndim):
        rows = np.sort(_rows(labels, axis), axis=1)
        unions[axis] = int((rows[:, 1:] != rows[:, :-1]).sum())
    best = sorted(unions, key=lambda axis: (unions[axis], axis))
    return best if unions[best[0]] else []


def _rows(labels: Labels, axis: int) -> Labels:
    """The labels as (size of the axis, all others)."""
    return np.moveaxis(labels, axis, 0).reshape(labels.shape[axis], -1)
