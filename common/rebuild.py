"""Rebuild: a timm network from the tensors a mask left, by their shapes alone.

The model is built on the meta device, every layer is given the shape of the tensor that came for it,
and the tensors are assigned. The whole backbone never exists there.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from common.backbone import Backbone, Weights
from common.errors import WeightsError
from common.mask import Mask
from common.module_sizes import match_sizes
from common.selection import Selection


def rebuild(
    backbone: Backbone, weights: Weights, num_classes: int | None = None, mask: Mask | None = None
) -> nn.Module:
    """A timm network of the shapes of `weights`, which it holds without a copy, on their device;
    evaluation mode.

    Where `weights` have no classifier it starts at zero, with `num_classes` outputs, for the features
    that `mask` leaves (default: all). Raises WeightsError if tensors are missing, unknown, or of another
    rank; with the `mask` that cut them, every shape and dtype is held against what it leaves.
    """
    classifier = [name for name in backbone.classifier_tensors if name in weights]
    outputs = weights[classifier[0]].shape[0] if classifier else num_classes
    network = backbone.skeleton(outputs)
    wanted = network.state_dict()
    blank = [name for name in backbone.classifier_tensors if name in wanted and not classifier]
    unknown = sorted(set(weights) - set(wanted))
    missing = sorted(set(wanted) - set(weights) - set(blank))
    ranks = [n for n in weights if n in wanted and weights[n].ndim != wanted[n].ndim]
    if unknown or missing or ranks:
        raise WeightsError(
            f"these tensors are no sub-network of {backbone.model}: "
            f"unknown {unknown[:3]}, missing {missing[:3]}, of another rank {ranks[:3]}; "
            "fetch the sub-network again"
        )
    selection = None if mask is None else Selection(mask)
    if selection is not None:
        _check_cut(weights, wanted, selection)
    like = next(tensor for tensor in weights.values() if tensor.is_floating_point())
    tensors = dict(weights)
    for name in blank:
        shape = wanted[name].shape if selection is None else selection.shape(name, wanted[name].shape)
        tensors[name] = like.new_zeros(shape)
    _resize(network, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    network.load_state_dict(tensors, strict=True, assign=True)
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    _fill_computed_buffers(network)
    # What is computed, not saved, is on the CPU until now.
    return network.to(like.device).eval()


def _check_cut(weights: Weights, whole: Weights, selection: Selection) -> None:
    problems = []
    for name, tensor in weights.items():
        own = tensor.dtype, tuple(tensor.shape)
        left = whole[name].dtype, selection.shape(name, whole[name].shape)
        if own != left:
            problems.append(f"{name} is {own[0]} {own[1]}, the mask leaves {left[0]} {left[1]}")
    if problems:
        raise WeightsError(
            f"these tensors are not what the mask leaves: {'; '.join(problems[:3])}; "
            "fetch the sub-network again"
        )


def _resize(network: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Give a network on the meta device the shapes of the tensors that will be assigned."""
    for name, shape in shapes.items():
        path, _, leaf = name.rpartition(".")
        module = network.get_submodule(path)
        tensor = getattr(module, leaf)
        if tuple(tensor.shape) != shape:
            empty = torch.empty(shape, dtype=tensor.dtype, device="meta")
            setattr(module, leaf, nn.Parameter(empty) if isinstance(tensor, nn.Parameter) else empty)
    for module in network.modules():
        match_sizes(module)


def _fill_computed_buffers(network: nn.Module) -> None:
    """Buffers that are not saved but computed from shapes: allocate, and let timm compute them."""
    for name, module in network.named_modules():
        computed = module._non_persistent_buffers_set
        lacking = [key for key in computed if (b := module._buffers[key]) is not None and b.is_meta]
        for key in lacking:
            module._buffers[key] = torch.empty_like(module._buffers[key], device="cpu")
        if lacking:
            compute = getattr(module, "init_non_persistent_buffers", None)
            if compute is None:
                raise WeightsError(
                    f"{name} computes {', '.join(lacking)} only when it is built; "
                    "this model cannot be rebuilt from its weights alone"
                )
            compute()
