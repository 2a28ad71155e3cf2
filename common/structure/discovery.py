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
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from common.errors import UnsupportedModel
from common.structure import operators, products
from common.structure.labels import FROZEN, Block, Labelled, Labels
from common.structure.operators import INPUT, POINTWISE, Operations, pointwise, unknown
from common.structure.structure import Cost, Group, Member, Structure, Term, merged

TRACE_BATCH = 5
"""Images in the traced batch: a number that networks have no other use for, to know the batch by."""

RULES = operators.RULES | products.RULES
TensorDim = tuple[str, int]


def discover(
    network: nn.Module, input_size: Sequence[int], classifiers: Sequence[str], model: Mapping[str, Any]
) -> Structure:
    """The structure of a network on the meta device, for inputs of (C, H, W).

    `classifiers` names its last modules, whose width is not part of the structure; `model` is
    written into the structure as what it was found in. Raises UnsupportedModel where torch.export
    cannot follow the network.
    """
    names = _names_of_one(network)
    walk = _Walk(_export(network, input_size), names)
    walk.make_rectangular()
    return _Grouping(walk, names).structure(classifiers, model, network.state_dict())


def _names_of_one(network: nn.Module) -> dict[str, tuple[str, ...]]:
    """For every name of a tensor all names that the network has it under, in one order."""
    names: dict[int, list[str]] = defaultdict(list)
    for name, tensor in (
        *network.named_parameters(remove_duplicate=False),
        *network.named_buffers(remove_duplicate=False),
    ):
        names[id(tensor)].append(name)
    return {name: tuple(same) for same in names.values() for name in same}


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

    def __init__(self, program: torch.export.ExportedProgram, names: Mapping[str, Sequence[str]]) -> None:
        self.operations = Operations(TRACE_BATCH)
        self.weights: dict[TensorDim, Labels] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
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


class _Grouping:
    """Units from connected labels, groups from units that are cut from the same places."""

    def __init__(self, walk: _Walk, names: Mapping[str, Sequence[str]]) -> None:
        self._walk = walk
        self._names_of_one = names
        self._root = walk.operations.partition.solve()
        self._keys = list(walk.weights)
        read = {labels.tobytes() for labels in walk.operations.readers}
        self._reads = np.array([walk.weights[key].tobytes() in read for key in self._keys], dtype=bool)
        learned = np.array([tensor in walk.parameters for tensor, _ in self._keys], dtype=bool)
        self._gives = learned & ~self._reads
        self._residual = self._roots_of(walk.operations.residual)
        self._statistics = self._roots_of(walk.operations.statistics)
        self._group_of = np.full(self._root.shape, -1)
        self._unit_of = np.full(self._root.shape, -1, dtype=np.int32)
        self._indivisible: set[int] = set()

    def _roots_of(self, labels: Sequence[Labels]) -> set[int]:
        return set(self._root[np.concatenate(labels)].tolist()) if labels else set()

    def structure(
        self, classifiers: Sequence[str], model: Mapping[str, Any], state: Mapping[str, torch.Tensor]
    ) -> Structure:
        groups = self._groups()
        shapes = self._walk.shapes
        work = [
            (constant // TRACE_BATCH if per_image else constant, rows)
            for constant, rows, per_image in self._walk.operations.work
        ]
        sizes = [self._size(name, shapes[name]) for name in shapes if name in self._walk.parameters]
        stored = [
            self._size(self._names_of_one[name][0], tuple(tensor.shape), tensor.element_size())
            for name, tensor in state.items()
        ]
        classes = shapes[f"{classifiers[0]}.weight"][0]
        return Structure(
            model,
            groups,
            classes,
            self._cost(sizes, classifiers, groups),
            self._cost(work, classifiers, groups),
            self._cost(stored, classifiers, groups),
            self._frozen(),
        )

    def _size(self, name: str, shape: tuple[int, ...], each: int = 1) -> tuple[int, tuple[Labels, ...]]:
        """How many indices a tensor has, times what each counts, as a product."""
        labels = [self._walk.weights.get((name, dim)) for dim in range(len(shape))]
        solid = math.prod(n for n, row in zip(shape, labels, strict=True) if row is None)
        return each * solid, tuple(row for row in labels if row is not None)

    def _cost(
        self,
        products: Sequence[tuple[int, tuple[Labels, ...]]],
        classifiers: Sequence[str],
        groups: Sequence[Group],
    ) -> Cost:
        """Products of how many indices remain, as terms; those along the classes kept apart."""
        outputs = [
            self._walk.weights.get((f"{name}.{leaf}", 0))
            for name in classifiers
            for leaf in ("weight", "bias")
        ]
        terms: list[Term] = []
        per_class: list[Term] = []
        for constant, rows in products:
            inner = tuple(row for row in rows if not any(_same(row, output) for output in outputs))
            into = terms if len(inner) == len(rows) else per_class
            into.append(self._term(constant, inner, groups))
        return Cost(merged(terms), merged(per_class))

    def _groups(self) -> tuple[Group, ...]:
        together: dict[bytes, list[int]] = {}
        keys_of: dict[bytes, np.ndarray] = {}
        for root, keys, counts in self._units():
            # Cutting wins something where a unit is read, and can be where it comes from parameters.
            if self._reads[keys].any() and self._gives[keys].any():
                signature = np.stack([keys, counts]).tobytes()
                together.setdefault(signature, []).append(root)
                keys_of[signature] = keys
        groups: list[Group] = []
        names: set[str] = set()
        for signature, roots in together.items():
            if len(roots) == 1:
                self._indivisible.update(roots)
            else:
                groups.append(self._group(len(groups), roots, keys_of[signature], names))
        return tuple(groups)

    def _units(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """For every unit its root, and the places it is cut from with how many indices of each.

        In the order in which they first come in the network.
        """
        roots = [self._root[self._walk.weights[key]] for key in self._keys]
        place = np.repeat(np.arange(len(roots)), [len(row) for row in roots])
        pairs, counts = np.unique(np.concatenate(roots) * len(roots) + place, return_counts=True)
        owner, keys = np.divmod(pairs, len(roots))
        unit, starts = np.unique(owner, return_index=True)
        ends = np.append(starts[1:], len(owner))
        for at in np.lexsort((unit, keys[starts])):
            if unit[at] != FROZEN:
                own = slice(starts[at], ends[at])
                yield int(unit[at]), keys[own], counts[own]

    def _group(self, number: int, roots: list[int], keys: np.ndarray, names: set[str]) -> Group:
        first_key = self._keys[keys[0]]
        values, first = np.unique(self._root[self._walk.weights[first_key]], return_index=True)
        starts = dict(zip(values.tolist(), first.tolist(), strict=True))
        roots = sorted(roots, key=starts.__getitem__)
        self._group_of[roots] = number
        self._unit_of[roots] = np.arange(len(roots))
        name = f"{first_key[0]}:{first_key[1]}"
        if name in names:
            name = f"{name}@{starts[roots[0]]}"
        names.add(name)
        members = []
        for key in keys:
            tensor, dim = self._keys[key]
            root = self._root[self._walk.weights[tensor, dim]]
            unit_of = np.where(self._group_of[root] == number, self._unit_of[root], np.int32(-1))
            for own_name in self._names_of_one.get(tensor, (tensor,)):
                members.append(Member(own_name, dim, unit_of, bool(self._reads[key])))
        return Group(
            name,
            len(roots),
            "residual" if self._residual.intersection(roots) else "internal",
            self._statistics.isdisjoint(roots),
            tuple(members),
        )

    def _term(self, constant: int, labels: Sequence[Labels], groups: Sequence[Group]) -> Term:
        axes = []
        for row in labels:
            group_of = self._group_of[self._root[row.ravel()]]
            solid = int((group_of < 0).sum())
            numbers, counts = np.unique(group_of[group_of >= 0], return_counts=True)
            if not numbers.size:
                constant *= solid
                continue
            parts = []
            for group, count in zip(numbers.tolist(), counts.tolist(), strict=True):
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
        written = {label for labels in self._walk.operations.writers for label in labels.tolist()}
        frozen = {}
        for (tensor, dim), labels in self._walk.weights.items():
            if not written.issuperset(labels.tolist()):
                continue
            roots = set(self._root[labels].tolist())
            if roots == {FROZEN}:
                own = [reasons[label] for label in labels.tolist() if label in reasons]
                frozen[f"{tensor}:{dim}"] = own[0] if own else "it is coupled with frozen units"
            elif roots <= self._indivisible:
                frozen[f"{tensor}:{dim}"] = "it is all one unit"
        return frozen


def _same(left: Labels, right: Labels | None) -> bool:
    return right is not None and np.array_equal(left, right)
