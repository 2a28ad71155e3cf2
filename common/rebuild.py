"""Rebuild: a timm network from the tensors a mask left, by their shapes alone.

The model is built on the meta device, every layer is given the shape of the tensor that came for it,
and the tensors are assigned. The whole backbone never exists there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from common.backbone import Backbone, Weights, features
from common.errors import WeightsError


def rebuild(backbone: Backbone, weights: Weights, num_classes: int | None = None) -> nn.Module:
    """A timm network of the shapes of `weights`, which it holds without a copy; evaluation mode.

    Where `weights` have no classifier it starts at zero, with `num_classes` outputs. Raises
    WeightsError if tensors are missing, unknown, or do not fit together.
    """
    classifier = [name for name in backbone.classifier_tensors if name in weights]
    outputs = weights[classifier[0]].shape[0] if classifier else num_classes
    network = backbone.skeleton(outputs)
    wanted = network.state_dict()
    unknown = sorted(set(weights) - set(wanted))
    missing = sorted(set(wanted) - set(weights) - set(backbone.classifier_tensors))
    ranks = [n for n in weights if n in wanted and weights[n].ndim != wanted[n].ndim]
    if unknown or missing or ranks:
        raise WeightsError(
            f"these tensors are no sub-network of {backbone.model}: "
            f"unknown {unknown[:3]}, missing {missing[:3]}, of another rank {ranks[:3]}; "
            "fetch the sub-network again"
        )
    _resize(network, {name: tuple(tensor.shape) for name, tensor in weights.items()})
    tensors = dict(weights)
    if not classifier:
        tensors |= _blank_classifier(network, backbone, tensors)
    network.load_state_dict(tensors, strict=True, assign=True)
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    _fill_computed_buffers(network)
    return network.eval()


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
        _match_attributes(module)


def _match_attributes(module: nn.Module) -> None:
    """Let a layer's own numbers say what its tensors say."""
    weight: Any = getattr(module, "weight", None)
    if isinstance(module, nn.modules.conv._ConvNd) and not module.transposed:
        if module.groups == module.in_channels and module.groups > 1:
            module.groups = module.in_channels = weight.shape[0] * module.groups // module.out_channels
        module.out_channels = weight.shape[0]
        module.in_channels = weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
        module.num_features = module.running_mean.shape[0]
    elif isinstance(module, nn.LayerNorm) and weight is not None:
        module.normalized_shape = tuple(weight.shape)
    elif isinstance(module, nn.GroupNorm) and weight is not None:
        module.num_channels = weight.shape[0]
    _match_attention(module)


def _match_attention(module: nn.Module) -> None:
    """Attention that fuses its projections counts its heads by their width, which stays."""
    attention: Any = module
    fused = getattr(attention, "qkv", None)
    if isinstance(fused, nn.Linear) and hasattr(attention, "head_dim"):
        width = fused.weight.shape[0] // 3
        attention.num_heads = width // attention.head_dim
        if hasattr(attention, "attn_dim"):
            attention.attn_dim = width


def _blank_classifier(network: nn.Module, backbone: Backbone, tensors: Weights) -> dict[str, Tensor]:
    """A classifier of zeros, as wide as the features that the cut network gives."""
    with torch.no_grad():
        wide: Any = network.get_submodule(backbone.classifier)
        probe = torch.empty(1, *backbone.input_size, device="meta")
        try:
            width = features(network, probe).shape[-1]
        except (RuntimeError, ValueError) as error:
            raise WeightsError(
                f"these tensors do not fit together as a {backbone.model}: {error}; "
                "fetch the sub-network again"
            ) from error
    like = next(tensor for tensor in tensors.values() if tensor.is_floating_point())
    blank = nn.Linear(width, wide.out_features, bias=True, dtype=like.dtype, device=like.device)
    nn.init.zeros_(blank.weight)
    nn.init.zeros_(blank.bias)
    path, _, leaf = backbone.classifier.rpartition(".")
    setattr(network.get_submodule(path), leaf, blank)
    names = backbone.classifier_tensors
    return {names[0]: blank.weight.detach(), names[1]: blank.bias.detach()}


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
