"""Discovery: the groups of coupled units of any network, from its graph alone, without weights.

`torch.export` gives the graph on the meta device. Every index of every parameter gets a label; the
graph is walked once, and each operation's rule says where labels go and which it unites. Connected
labels that end in something that reads them are units; units cut from the same places are a group.
"""

from __future__ import annotations

import gc
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.fx import config as fx_config

from common.errors import UnsupportedModel
from common.structure.grouping import Grouping
from common.structure.structure import Structure
from common.structure.walk import TRACE_BATCH, Walk
from common.system_errors import pass_on


def discover(
    network: nn.Module, input_size: Sequence[int], classifiers: Sequence[str], model: Mapping[str, Any]
) -> Structure:
    """The structure of a network on the meta device, for inputs of (C, H, W).

    `classifiers` names its last modules, whose width is not part of the structure; `model` is
    written into the structure as what it was found in. Raises UnsupportedModel where torch.export
    cannot follow the network.
    """
    names = _names_of_one(network)
    walk = Walk(_export(network, input_size), names)
    walk.make_rectangular()
    return Grouping(walk, names).structure(classifiers, model, network.state_dict())


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
        with warnings.catch_warnings(), _hurry():
            warnings.simplefilter("ignore")
            return torch.export.export(network.eval(), (example,), strict=False)
    except Exception as error:
        pass_on(error)
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise UnsupportedModel(
            f"torch.export cannot follow this network on inputs of {tuple(input_size)}: "
            f"{first_line}; choose another input size or model"
        ) from error


@contextmanager
def _hurry() -> Iterator[None]:
    """Without what takes torch.export a third of its time: garbage, and where each node came from."""
    collects = gc.isenabled()
    remembers = getattr(fx_config, "do_not_emit_stack_traces", None)
    gc.disable()
    if remembers is not None:
        fx_config.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        if collects:
            gc.enable()
        if remembers is not None:
            fx_config.do_not_emit_stack_traces = remembers
