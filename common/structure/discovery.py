"""Discovery: the groups of coupled units of any network, from its graph alone, without weights.

`torch.export` gives the graph on the meta device. Every index of every parameter gets a label; the
graph is walked once, and each operation's rule says where labels go and which it unites. Connected
labels that end in something that reads them are units; units cut from the same places are a group.
"""

from __future__ import annotations

import math
import operator
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from common.errors import UnsupportedModel
from common.structure.labels import FROZEN, Block, Labelled, Labels
from common.structure.operators import POINTWISE, RULES, Operations, pointwise, unknown
from common.structure.structure import Cost, Group, Member, Structure, Term, merged

TRACE_BATCH = 2
"""Images in the traced batch: more than one, so that the batch is not taken for a fixed dimension."""

TensorDim = tuple[str, int]


def discover(
    network: nn.Module, input_size: Sequence[int], classifier: str, model: Mapping[str, Any]
) -> Structure:
    """The structure of a network on the meta device, for inputs of (C, H, W).

    `classifier` names its last linear module, whose width is not part of the structure; `model` is
    written into the structure as what it was found in. Raises UnsupportedModel where torch.export
    cannot follow the network.
    """
    walk = _Walk(_export(network, input_size))
    walk.make_rectangular()
    return _Grouping(walk).structure(f"{classifier}.weight", model)


def _export(network: nn.Module, input_size: Sequence[int]) -> torch.export.ExportedProgram:
    example = torch.empty(TRACE_BATCH, *input_size, device="meta")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(network.eval(), (example,), strict=False)
    except Exception as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise UnsupportedModel(
            f"torch.export cannot follow this network on inputs of {tuple(input_size)}: "
            f"{first_line}; choose another input size or model"
        ) from error


class _Walk:
    """One pass over the graph: labels of every tensor, and what was united on the way."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        self.operations = Operations()
        self.weights: dict[TensorDim, Labels] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        signature = program.graph_signature
        self.parameters = set(signature.inputs_to_parameters.values())
        self._names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self._constants = set(signature.inputs_to_lifted_tensor_constants)
        self._values: dict[torch.fx.Node, Any] = {}
        self._split_blocks: list[Block] = []
        for node in program.graph.nodes:
            value = self._value(node)
            self._values[node] = value
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
            return Labelled(shape, (), from_input=node.name not in self._constants)
        self.shapes[name] = shape
        blocks = []
        for dim, size in enumerate(shape):
            if size > 1:
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
        Where the labels say otherwise, the trailing dimension is kept whole.
        """
        while True:
            root = self.operations.partition.solve()
            ragged = [b for b in self._split_blocks if not _is_rectangular(root[b.labels])]
            if not ragged:
                return
            for block in ragged:
                rows = block.labels.reshape(block.labels.shape[0], -1)
                self.operations.partition.unite(rows, rows[:, :1])


def _is_rectangular(labels: Labels) -> bool:
    for axis in range(labels.ndim):
        rows = np.moveaxis(labels, axis, 0).reshape(labels.shape[axis], -1)
        if (rows == rows[:, :1]).all():
            return True
    return bool((labels == FROZEN).all())


class _Grouping:
    """Units from connected labels, groups from units that are cut from the same places."""

    def __init__(self, walk: _Walk) -> None:
        self._walk = walk
        self._root = walk.operations.partition.solve()
        self._readers = {
            key
            for key, labels in walk.weights.items()
            for read in walk.operations.readers
            if read.size == labels.size and np.array_equal(read, labels)
        }
        self._residual = self._roots_of(walk.operations.residual)
        self._statistics = self._roots_of(walk.operations.statistics)
        self._group_of_root: dict[int, int] = {}

    def _roots_of(self, labels: Sequence[Labels]) -> set[int]:
        return set(self._root[np.concatenate(labels)].tolist()) if labels else set()

    def structure(self, classifier: str, model: Mapping[str, Any]) -> Structure:
        groups = self._groups()
        weights, shapes = self._walk.weights, self._walk.shapes
        work = [(constant // TRACE_BATCH, rows) for constant, rows in self._walk.operations.work]
        sizes = []
        for name, shape in shapes.items():
            if name in self._walk.parameters:
                labels = [weights.get((name, dim)) for dim in range(len(shape))]
                solid = math.prod(n for n, row in zip(shape, labels, strict=True) if row is None)
                sizes.append((solid, tuple(row for row in labels if row is not None)))
        classes = shapes[classifier][0]
        return Structure(
            model,
            groups,
            classes,
            self._cost(sizes, classifier, groups),
            self._cost(work, classifier, groups),
            self._frozen(),
        )

    def _cost(
        self,
        products: Sequence[tuple[int, tuple[Labels, ...]]],
        classifier: str,
        groups: Sequence[Group],
    ) -> Cost:
        """Products of how many indices remain, as terms; those along the classes kept apart."""
        outputs = self._walk.weights.get((classifier, 0))
        bias = self._walk.weights.get((classifier.replace(".weight", ".bias"), 0))
        terms: list[Term] = []
        per_class: list[Term] = []
        for constant, rows in products:
            inner = tuple(row for row in rows if not (_same(row, outputs) or _same(row, bias)))
            into = terms if len(inner) == len(rows) else per_class
            into.append(self._term(constant, inner, groups))
        return Cost(merged(terms), merged(per_class))

    def _groups(self) -> tuple[Group, ...]:
        units: dict[int, dict[TensorDim, np.ndarray]] = defaultdict(dict)
        for key, labels in self._walk.weights.items():
            roots = self._root[labels]
            order = np.argsort(roots, kind="stable")
            values, starts = np.unique(roots[order], return_index=True)
            for value, indices in zip(values, np.split(order, starts[1:]), strict=True):
                if value != FROZEN:
                    units[int(value)][key] = indices
        together: dict[tuple, list[int]] = defaultdict(list)
        for root, places in units.items():
            if self._readers.isdisjoint(places):
                continue  # nothing reads it: there is nothing to win by cutting
            together[tuple((key, len(at)) for key, at in places.items())].append(root)
        groups, names = [], set()
        for signature, roots in together.items():
            keys = [key for key, _ in signature]
            roots.sort(key=lambda root: int(units[root][keys[0]][0]))
            name = f"{keys[0][0]}:{keys[0][1]}"
            if name in names:
                name = f"{name}@{int(units[roots[0]][keys[0]][0])}"
            names.add(name)
            members = []
            for tensor, dim in keys:
                unit_of = np.full(self._walk.shapes[tensor][dim], -1, dtype=np.int32)
                for unit, root in enumerate(roots):
                    unit_of[units[root][tensor, dim]] = unit
                members.append(Member(tensor, dim, unit_of, (tensor, dim) in self._readers))
            groups.append(
                Group(
                    name,
                    len(roots),
                    "residual" if self._residual.intersection(roots) else "internal",
                    self._statistics.isdisjoint(roots),
                    tuple(members),
                )
            )
            self._group_of_root.update(dict.fromkeys(roots, len(groups) - 1))
        return tuple(groups)

    def _term(self, constant: int, labels: Sequence[Labels], groups: Sequence[Group]) -> Term:
        axes = []
        for row in labels:
            counts: dict[int, int] = defaultdict(int)
            solid = 0
            for root in self._root[row.ravel()].tolist():
                group = self._group_of_root.get(root)
                if group is None:
                    solid += 1
                else:
                    counts[group] += 1
            if not counts:
                constant *= solid
                continue
            parts = []
            for group, count in sorted(counts.items()):
                per_unit, rest = divmod(count, groups[group].units)
                if rest:
                    raise UnsupportedModel(
                        f"the units of group {groups[group].name} do not all cost the same; "
                        "this network's costs cannot be stated"
                    )
                parts.append((group, per_unit))
            axes.append((solid, tuple(parts)))
        return Term(constant, tuple(sorted(axes)))

    def _frozen(self) -> dict[str, str]:
        """Weights whose outputs cannot be cut, each with the reason nearest to it."""
        reasons = self._walk.operations.partition.reasons()
        frozen = {}
        for (tensor, dim), labels in self._walk.weights.items():
            is_output = dim == 0 and len(self._walk.shapes[tensor]) > 1
            if is_output and (self._root[labels] == FROZEN).all():
                own = [reasons[label] for label in labels.tolist() if label in reasons]
                frozen[f"{tensor}:{dim}"] = own[0] if own else "it is coupled with frozen units"
        return frozen


def _same(left: Labels, right: Labels | None) -> bool:
    return right is not None and np.array_equal(left, right)
