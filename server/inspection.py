"""Inspection: what a proved table says of a backbone, as numbers that a person or a script can read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from torch import nn

from common.backbone import Backbone
from common.module_sizes import HEAD_COUNTS, output_projection
from common.proof import PROVED, Verdict
from common.structure import Group, Kind, Structure
from server.proved_table import ProvedTable

VALUE_PROJECTIONS = ("qkv", "kv", "v")
"""Where attention without an output projection computes its values: its rows are the heads."""

CHOICES: Mapping[str, tuple[Kind, ...]] = {
    "internal": ("internal",),
    "internal and residual": ("internal", "residual"),
}
"""What an operator can let masks cut."""


@dataclass(frozen=True)
class Extent:
    """A network's units, parameters, and floating-point operations per image."""

    units: int
    parameters: int
    flops: int


@dataclass(frozen=True)
class InspectedGroup:
    """A group, its verdict, and the parameters and FLOPs that go when one unit of the whole goes."""

    group: Group
    verdict: Verdict
    parameters: int
    flops: int

    @property
    def is_proved(self) -> bool:
        """Whether masks may cut it."""
        return self.verdict.outcome in PROVED


@dataclass(frozen=True)
class Inspection:
    """All that `inspect` shows of a backbone.

    `attention` says of every attention module of several heads whether heads of it can be cut;
    `frozen` has the weights and groups that are never cut, with why.
    """

    backbone: Backbone
    table: ProvedTable
    groups: tuple[InspectedGroup, ...]
    whole: Extent
    smallest: Mapping[str, Extent]
    attention: Mapping[str, bool]
    frozen: Mapping[str, str]

    def found(self, kind: Kind) -> int:
        """How many groups of a kind there are."""
        return sum(entry.group.kind == kind for entry in self.groups)

    def proved(self, kind: Kind) -> int:
        """How many of them are proved."""
        return sum(entry.group.kind == kind and entry.is_proved for entry in self.groups)

    @cached_property
    def digest(self) -> str:
        """The digest of the structure of all that is proved."""
        return self.table.structure(("internal", "residual")).digest

    def to_dict(self) -> dict[str, Any]:
        """All of it as one JSON object; a `difference` that is no number is null."""
        table = self.table
        return {
            "identity": self.backbone.identity,
            "classes": self.backbone.num_classes,
            "digest": self.digest,
            **asdict(self.whole),
            "groups": [
                {
                    "name": entry.group.name,
                    "kind": entry.group.kind,
                    "units": entry.group.units,
                    "exact": entry.group.exact,
                    "verdict": entry.verdict.outcome,
                    "reason": entry.verdict.reason,
                    "difference": _number(entry.verdict.difference),
                    "parameters_per_unit": entry.parameters,
                    "flops_per_unit": entry.flops,
                }
                for entry in self.groups
            ],
            "smallest": {choice: asdict(extent) for choice, extent in self.smallest.items()},
            "attention": dict(self.attention),
            "frozen": dict(self.frozen),
            "found": {kind: self.found(kind) for kind in CHOICES["internal and residual"]},
            "proved": {kind: self.proved(kind) for kind in CHOICES["internal and residual"]},
            "seconds": {
                "discovery": asdict(table.discovery_seconds),
                "proof": asdict(table.proof_seconds),
            },
        }


def inspection(backbone: Backbone, table: ProvedTable) -> Inspection:
    """The inspection of a backbone by its table."""
    found = table.found
    proved = table.structure(("internal", "residual"))
    groups = tuple(
        InspectedGroup(group, verdict, *_cost_of_one_unit(found, index))
        for index, (group, verdict) in enumerate(zip(found.groups, table.proof.verdicts, strict=True))
    )
    structures = {choice: table.structure(kinds) for choice, kinds in CHOICES.items()}
    return Inspection(
        backbone,
        table,
        groups,
        Extent(found.units, found.parameters(), found.flops()),
        {
            choice: Extent(len(cut.groups), cut.parameters(cut.smallest), cut.flops(cut.smallest))
            for choice, cut in structures.items()
        },
        attention_heads(backbone.skeleton(), proved),
        dict(proved.frozen),
    )


def _cost_of_one_unit(structure: Structure, index: int) -> tuple[int, int]:
    fewer = [units - (place == index) for place, units in enumerate(structure.sizes)]
    return (
        structure.parameters() - structure.parameters(fewer),
        structure.flops() - structure.flops(fewer),
    )


def attention_heads(network: nn.Module, structure: Structure) -> dict[str, bool]:
    """Attention modules of more than one head, each with whether the structure cuts heads of it.

    Heads are cut where what the output projection reads is; without one, where the values are.
    """
    names = {id(module): name for name, module in network.named_modules()}
    cut = {(member.tensor, member.dim) for group in structure.groups for member in group.members}
    places = {}
    for name, module in network.named_modules():
        if _heads(module) > 1 and (place := _place_of_heads(module)) is not None:
            places[name] = (f"{names[id(place[0])]}.weight", place[1])
    outer = {name for name in places for inner in places if inner.startswith(f"{name}.")}
    return {name: place in cut for name, place in places.items() if name not in outer}


def _heads(module: nn.Module) -> int:
    counts = [getattr(module, name, None) for name in HEAD_COUNTS]
    return max((count for count in counts if isinstance(count, int)), default=0)


def _place_of_heads(attention: nn.Module) -> tuple[nn.Module, int] | None:
    """The layer, and the dimension of its weight, where the heads are one after the other."""
    projection = output_projection(attention)
    if projection is not None:
        return projection, 1
    for layer in _value_projections(attention):
        return layer, 0
    return None


def _value_projections(attention: nn.Module) -> Iterator[nn.Module]:
    for name in VALUE_PROJECTIONS:
        layer = getattr(attention, name, None)
        if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):
            yield layer


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
