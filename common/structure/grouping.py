"""Grouping: units from connected labels, groups from units that are cut from the same places."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from common.errors import UnsupportedModel
from common.structure.activations import BYTES
from common.structure.cost import Cost, Term, largest, merged
from common.structure.labels import FROZEN, Labels
from common.structure.structure import Group, Member, Structure
from common.structure.walk import TRACE_BATCH, Walk


class Grouping:
    """Units from connected labels, groups from units that are cut from the same places."""

    def __init__(self, walk: Walk, names: Mapping[str, Sequence[str]]) -> None:
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
        """The structure, with the costs of a network of this state dict."""
        groups = self._groups(state)
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
        operations = self._walk.operations
        moments = [
            self._cost(
                [self._extent(operations.extents(tensor)) for tensor in alive], classifiers, groups
            )
            for alive in self._walk.activations.moments()
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
            largest(moments),
        )

    def _extent(self, factors: Sequence[Labels | int]) -> tuple[int, tuple[Labels, ...]]:
        """The bytes of an activation of one image, as a product."""
        solid = BYTES * math.prod(factor for factor in factors if isinstance(factor, int))
        return solid // TRACE_BATCH, tuple(f.ravel() for f in factors if not isinstance(f, int))

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

    def _groups(self, state: Mapping[str, torch.Tensor]) -> tuple[Group, ...]:
        saved = np.array([tensor in state for tensor, _ in self._keys], dtype=bool)
        together: dict[bytes, list[int]] = {}
        keys_of: dict[bytes, np.ndarray] = {}
        for root, keys, counts in self._units():
            # Cutting wins something where a unit is read, and can be where it comes from parameters.
            if self._reads[keys].any() and self._gives[keys].any():
                signature = np.stack([keys, counts]).tobytes()
                together.setdefault(signature, []).append(root)
                keys_of[signature] = keys[saved[keys]]  # what is computed anew is not cut
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
