"""Structure: the groups of coupled units of a backbone, in a fixed order, and what each unit costs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from common.errors import InputError, MismatchError
from common.structure.cost import MAX_COST, MAX_INDICES, Cost, Term, largest, merged
from common.structure.cost_arrays import CostArrays

FORMAT = 2

Kind = Literal["internal", "residual"]
KINDS: tuple[Kind, ...] = ("internal", "residual")


@dataclass(frozen=True, eq=False)
class Member:
    """One dimension of one parameter or buffer that a group cuts.

    `unit_of` is int32 (size of the dimension,): the unit that each index belongs to, -1 for none.
    `reads` says that the dimension is summed over: its columns are where the units are read.
    """

    tensor: str
    dim: int
    unit_of: np.ndarray
    reads: bool

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Member) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> tuple:
        return self.tensor, self.dim, tuple(self.unit_of.tolist()), self.reads


@dataclass(frozen=True)
class Group:
    """Units that are cut together because their layers are coupled.

    `name` is the first member's tensor and dimension (`layer1.0.conv1.weight:0`). A group is
    `residual` when a sum of activations runs through it, else `internal`. Where it is not `exact`
    a norm or mean is taken over its units: the cut network then differs from the masked one.
    """

    name: str
    units: int
    kind: Kind
    exact: bool
    members: tuple[Member, ...]


@dataclass(frozen=True)
class Structure:
    """The groups of a timm model and its costs; both sides must agree on it, hence its digest.

    `model` names what it was found in: timm version, model name, arguments, input size; `classes`
    is the width of the backbone's own classifier. Costs are exact for the cut network: parameters,
    floating-point operations per image as torch counts them (two per multiply-add), and bytes of all
    tensors of its state dict. `activation_costs` are bytes of the activations that are alive at once, at
    every moment that may be the one where they are most; none where the structure was found by a version
    that did not count them.
    """

    model: Mapping[str, Any]
    groups: tuple[Group, ...]
    classes: int
    parameter_cost: Cost
    flop_cost: Cost
    byte_cost: Cost
    frozen: Mapping[str, str] = field(default_factory=dict)
    activation_costs: tuple[Cost, ...] = ()

    def __post_init__(self) -> None:
        problems = []
        names = [group.name for group in self.groups]
        if len(set(names)) != len(names):
            problems.append("two groups have one name")
        for group in self.groups:
            if not 1 <= group.units <= MAX_INDICES or group.kind not in KINDS:
                problems.append(f"{group.name} has {group.units} units and is {group.kind!r}")
            for numbers in {id(m.unit_of): m.unit_of for m in group.members}.values():
                if (
                    numbers.ndim != 1
                    or numbers.size == 0
                    or not (numbers.min() >= -1 and numbers.max() < group.units)
                ):
                    problems.append(f"{group.name} numbers units that it has not")
        if not 0 <= self.classes <= MAX_INDICES:
            problems.append(f"it has {self.classes} classes")
        terms = [term for cost in self.costs for term in (*cost.terms, *cost.per_class)]
        if any(not 0 <= g < len(names) for term in terms for _, parts in term.axes for g, _ in parts):
            problems.append("a cost names a group that there is not")
        elif any(not 0 <= number <= MAX_COST for term in terms for number in term.numbers):
            problems.append(f"a cost has a number outside 0 to {MAX_COST}")
        elif any(cost.at(self.sizes, MAX_INDICES) > MAX_COST for cost in self.costs):
            problems.append(f"a cost of the whole network is above {MAX_COST}")
        if problems:
            raise InputError(f"this is no structure: {'; '.join(problems[:5])}; fetch it again")

    @property
    def costs(self) -> tuple[Cost, ...]:
        """In parameters, floating-point operations, bytes, and bytes of activations moment by moment."""
        return self.parameter_cost, self.flop_cost, self.byte_cost, *self.activation_costs

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Units of every group, in order."""
        return tuple(group.units for group in self.groups)

    @cached_property
    def starts(self) -> Mapping[str, int]:
        """Where each group's units start when all groups stand one after the other."""
        offsets = np.cumsum([0, *self.sizes])
        return {g.name: int(at) for g, at in zip(self.groups, offsets[:-1], strict=True)}

    @property
    def units(self) -> int:
        """Units of all groups together."""
        return sum(self.sizes)

    @property
    def smallest(self) -> tuple[int, ...]:
        """The fewest units a sub-network may keep, per group: one."""
        return (1,) * len(self.groups)

    def group(self, name: str) -> Group:
        """The group of that name; KeyError names those there are."""
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(f"no group {name!r}; there are {', '.join(self.starts)}")

    def share(self, kept: Sequence[int]) -> float:
        """The share of all units that so many of every group are; 1 where there is nothing to cut."""
        return sum(kept) / self.units if self.units else 1.0

    def parameters(self, kept: Sequence[int] | None = None, classes: int | None = None) -> int:
        """Parameters of the network that keeps so many units of every group, for so many classes.

        By default all units, and the backbone's classes.
        """
        return int(self._all_costs(kept, classes)[0])

    def flops(self, kept: Sequence[int] | None = None, classes: int | None = None) -> int:
        """Floating-point operations per image of that network."""
        return int(self._all_costs(kept, classes)[1])

    def weight_bytes(self, kept: Sequence[int] | None = None, classes: int | None = None) -> int:
        """Bytes of that network's state dict: parameters and saved buffers, under all their names."""
        return int(self._all_costs(kept, classes)[2])

    def activation_bytes(self, kept: Sequence[int] | None = None, classes: int | None = None) -> int:
        """Bytes of all activations of that network that are alive at once for one image, at most.

        In float32, and freed after their last use, as runtimes that plan their memory do; eager PyTorch,
        whose callers hold what they gave, needs up to twice as much. Raises InputError where the
        structure does not tell.
        """
        if not self.activation_costs:
            raise InputError(
                "this structure was found by a version that counted no activations; found the library "
                "anew to give budgets of activations"
            )
        return int(self._all_costs(kept, classes)[3:].max())

    def _all_costs(self, kept: Sequence[int] | None, classes: int | None) -> np.ndarray:
        """What that network costs, in the order of `costs`."""
        return self._cost_arrays.at(
            self.sizes if kept is None else kept, self.classes if classes is None else classes
        )

    @cached_property
    def _cost_arrays(self) -> CostArrays:
        return CostArrays(self.costs, self.sizes)

    @cached_property
    def dims(self) -> Mapping[str, tuple[tuple[int, np.ndarray], ...]]:
        """For every tensor that a mask cuts: its dimensions, each with the unit of every index.

        Units are numbered over all groups; what is never cut has the number `units`, so that a mask
        extended by one True answers for it.
        """
        ids: dict[str, dict[int, np.ndarray]] = {}
        for group in self.groups:
            start = self.starts[group.name]
            for member in group.members:
                per_dim = ids.setdefault(member.tensor, {})
                into = per_dim.setdefault(
                    member.dim, np.full(member.unit_of.shape, self.units, dtype=np.int64)
                )
                own = member.unit_of >= 0
                into[own] = start + member.unit_of[own]
        return {tensor: tuple(sorted(per_dim.items())) for tensor, per_dim in ids.items()}

    @cached_property
    def digest(self) -> str:
        """sha256 over everything a mask's meaning depends on: the model and its groups."""
        data = json.loads(self.to_json())
        meaning = [data[key] for key in ("format", "model", "groups", "patterns")]
        return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()

    def only(self, kinds: Sequence[Kind]) -> Structure:
        """The structure with groups of some kinds alone; the others are kept whole."""
        chosen = [index for index, group in enumerate(self.groups) if group.kind in kinds]
        return self._restricted(chosen, "left out by choice")

    def without(self, reasons: Mapping[str, str]) -> Structure:
        """The structure with some groups frozen: name -> why."""
        chosen = [i for i, group in enumerate(self.groups) if group.name not in reasons]
        return self._restricted(chosen, reasons)

    def _restricted(self, chosen: Sequence[int], reason: str | Mapping[str, str]) -> Structure:
        place = {old: new for new, old in enumerate(chosen)}

        def narrow(term: Term) -> Term:
            axes = []
            for solid, parts in term.axes:
                whole = sum(n * self.sizes[g] for g, n in parts if g not in place)
                left = tuple((place[g], n) for g, n in parts if g in place)
                axes.append((solid + whole, left))
            return Term(term.constant, tuple(axes))

        def narrow_cost(cost: Cost) -> Cost:
            return Cost(
                merged([narrow(term) for term in cost.terms]),
                merged([narrow(term) for term in cost.per_class]),
            )

        dropped = {
            g.name: reason if isinstance(reason, str) else reason[g.name]
            for i, g in enumerate(self.groups)
            if i not in place
        }
        return Structure(
            self.model,
            tuple(self.groups[i] for i in chosen),
            self.classes,
            narrow_cost(self.parameter_cost),
            narrow_cost(self.flop_cost),
            narrow_cost(self.byte_cost),
            {**self.frozen, **dropped},
            largest([narrow_cost(cost) for cost in self.activation_costs]),
        )

    def to_json(self) -> str:
        """The structure as JSON, the same text for the same structure."""
        patterns: dict[bytes, int] = {}
        rows: list[list[int]] = []

        def pattern(unit_of: np.ndarray) -> int:
            key = unit_of.tobytes()
            if key not in patterns:
                patterns[key] = len(rows)
                rows.append(_to_runs(unit_of))
            return patterns[key]

        groups = [
            [g.name, g.units, g.kind, g.exact,
             [[m.tensor, m.dim, pattern(m.unit_of), m.reads] for m in g.members]]
            for g in self.groups
        ]  # fmt: skip
        return json.dumps(
            {
                "format": FORMAT,
                "model": dict(self.model),
                "groups": groups,
                "patterns": rows,
                "classes": self.classes,
                "parameters": self.parameter_cost.to_lists(),
                "flops": self.flop_cost.to_lists(),
                "bytes": self.byte_cost.to_lists(),
                "activations": [cost.to_lists() for cost in self.activation_costs],
                "frozen": dict(self.frozen),
            },
            sort_keys=True,
            separators=(",", ":"),
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> Structure:
        """The structure of a JSON text.

        Raises InputError on what is no structure, MismatchError on another format.
        """
        try:
            data = json.loads(text)
            if data["format"] != FORMAT:
                raise MismatchError(
                    f"the structure has format {data['format']}, this version reads {FORMAT}; "
                    "use the same version of maskvote on both sides"
                )
            rows = [_from_runs(row) for row in data["patterns"]]
            groups = tuple(
                Group(name, int(units), kind, bool(exact), tuple(
                    Member(tensor, int(dim), rows[row], bool(reads))
                    for tensor, dim, row, reads in members))
                for name, units, kind, exact, members in data["groups"]
            )  # fmt: skip
            return cls(
                data["model"],
                groups,
                int(data["classes"]),
                Cost.from_lists(data["parameters"]),
                Cost.from_lists(data["flops"]),
                Cost.from_lists(data["bytes"]),
                data["frozen"],
                tuple(Cost.from_lists(cost) for cost in data.get("activations", [])),
            )
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"this is not a structure: {error!r}; fetch it again") from error


def _to_runs(unit_of: np.ndarray) -> list[int]:
    """Unit numbers as runs of first number, length, and step (0 or 1), one run after the other."""
    runs: list[int] = []
    steps = np.diff(unit_of)
    changes = np.append(np.flatnonzero(np.diff(steps)) + 1, len(steps))
    at = 0
    while at < len(unit_of):
        step = int(steps[at]) if at < len(steps) else 0
        until = int(changes[np.searchsorted(changes, at, side="right")]) if at < len(steps) else at
        length = until - at + 1 if step in (0, 1) else 1
        runs += [int(unit_of[at]), length, step if length > 1 else 0]
        at += length
    return runs


def _from_runs(runs: Sequence[int]) -> np.ndarray:
    """Unit numbers, int32, of their runs; ValueError for what are none."""
    numbers = np.asarray(runs, dtype=np.int64)
    if numbers.ndim != 1:
        raise ValueError("runs are not one list of numbers")
    firsts, lengths, steps = numbers.reshape(-1, 3).T
    # Each for itself too: the sum of a few that are too long wraps around to a small number.
    if (lengths < 1).any() or (lengths > MAX_INDICES).any() or lengths.sum() > MAX_INDICES:
        raise ValueError(f"runs of {lengths.tolist()[:5]} indices; each has 1, all {MAX_INDICES} at most")
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return (np.repeat(firsts, lengths) + np.repeat(steps, lengths) * within).astype(np.int32)
