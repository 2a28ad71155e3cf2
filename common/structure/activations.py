"""Activations: which of them are alive at once while a graph runs, and hence how much memory it takes."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch

from common.structure.labels import Labelled

BYTES = 4
"""Of one value: activations are float32."""
IDENTITIES = ("dropout", "feature_dropout", "alpha_dropout")
"""Operations that a network in evaluation mode passes through."""


class Activations:
    """The tensors that a graph computes for an image, each with the nodes between which it is alive.

    A view, or what is written in place, is the tensor that it is a view of. As eager PyTorch goes through
    the graph: every operation holds its operands and its result at once.
    """

    def __init__(self, graph: torch.fx.Graph) -> None:
        self._tensor_of: dict[torch.fx.Node, torch.fx.Node] = {}
        self._computed: dict[torch.fx.Node, Labelled] = {}
        self._last: dict[torch.fx.Node, int] = {}
        self._order = {node: at for at, node in enumerate(graph.nodes)}

    def note(self, node: torch.fx.Node, value: Any) -> None:
        """A node of the graph, in its order, and its labels: None for what is no activation."""
        for used in node.all_input_nodes:
            self._last[self._tensor_of.get(used, used)] = self._order[node]
        base = _base_of(node)
        if base is not None:
            self._tensor_of[node] = self._tensor_of.get(base, base)
            return
        self._tensor_of[node] = node
        self._last.setdefault(node, self._order[node])
        if isinstance(value, Labelled) and value.from_input:
            self._computed[node] = value

    def moments(self) -> Iterator[list[Labelled]]:
        """The activations alive at each operation that computes one, but where others include them."""
        sets: list[set[torch.fx.Node]] = []
        for node in self._computed:
            at = self._order[node]
            sets.append({n for n in self._computed if self._order[n] <= at <= self._last[n]})
        for number, alive in enumerate(sets):
            earlier, later = sets[:number], sets[number + 1 :]
            if not any(alive <= other for other in later) and not any(alive < o for o in earlier):
                yield [self._computed[node] for node in alive]


def _base_of(node: torch.fx.Node) -> torch.fx.Node | None:
    """The node whose memory this one's result lies in; None for memory of its own."""
    if node.op != "call_function" or not node.all_input_nodes:
        return None
    target: Any = node.target
    if target is operator.getitem:
        return node.all_input_nodes[0]
    schema = target._schema
    if schema.name.split("::")[1].rstrip("_") in IDENTITIES:
        return node.all_input_nodes[0]
    aliased = {
        name
        for result in schema.returns
        if result.alias_info is not None
        for name in (*result.alias_info.before_set, *result.alias_info.after_set)
    }
    for place, argument in enumerate(schema.arguments):
        info = argument.alias_info
        if info is None or not aliased.intersection((*info.before_set, *info.after_set)):
            continue
        given = node.args[place] if place < len(node.args) else node.kwargs.get(argument.name)
        if isinstance(given, torch.fx.Node):
            return given
    return None
