"""Sub-network: the small dense network that a mask cuts out of the backbone, and how it travels.

The server selects indices; the receiver builds the timm model on the meta device, gives every layer
the shape of the tensor that came for it, and assigns the tensors. The whole backbone never exists
there, and nothing is unpickled.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from common.backbone import Backbone, Weights, features
from common.errors import InputError, MaskError, WeightsError
from common.mask import Mask
from common.structure import Structure

FORMAT = "1"


def cut(weights: Weights, mask: Mask, within: Mask | None = None) -> dict[str, Tensor]:
    """The tensors that a mask leaves, in the names of the backbone's: copies, the input unchanged.

    `within` is the mask that `weights` have been cut with before (default: none), and must keep all
    that `mask` keeps. With all of a group's consumers' columns zeroed, the backbone computes the
    same. Raises MaskError if a unit is asked for that is gone.
    """
    if within is not None and not mask.within(within):
        raise MaskError("the mask keeps units that these weights no longer hold")
    keep_of = np.append(mask.kept, True)
    held_of = np.append(within.kept, True) if within is not None else None
    dims = mask.structure.dims
    result = {}
    for name, tensor in weights.items():
        selected = tensor
        for dim, units in dims.get(name, ()):
            keep = keep_of[units]
            if held_of is not None:
                keep = keep[held_of[units]]
            if not keep.all():
                index = torch.from_numpy(np.flatnonzero(keep)).to(tensor.device)
                selected = selected.index_select(dim, index)
        result[name] = selected.clone() if selected is tensor else selected
    return result


def masked(weights: Weights, mask: Mask) -> dict[str, Tensor]:
    """The backbone's tensors with every column zeroed that reads a unit the mask drops."""
    result = {name: tensor.clone() for name, tensor in weights.items()}
    for group in mask.structure.groups:
        kept = np.append(mask[group.name], True)
        for member in group.members:
            if member.reads:
                gone = torch.from_numpy(np.flatnonzero(~kept[member.unit_of]))
                result[member.tensor].index_fill_(member.dim, gone, 0.0)
    return result


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


@dataclass(frozen=True)
class SubNetwork:
    """What travels: the backbone's description, the mask that cut it, and the tensors left.

    The classifier stays behind: a device's classes are its own.
    """

    backbone: Backbone
    mask: Mask
    weights: Weights

    @classmethod
    def of(cls, backbone: Backbone, weights: Weights, mask: Mask) -> SubNetwork:
        """The sub-network that a mask cuts out of the backbone's weights."""
        left = {k: v for k, v in weights.items() if k not in backbone.classifier_tensors}
        return cls(backbone, mask, cut(left, mask))

    def network(self, num_classes: int) -> nn.Module:
        """A network of its own tensors, with a classifier of zeros for so many classes."""
        own = {name: tensor.clone() for name, tensor in self.weights.items()}
        return rebuild(self.backbone, own, num_classes)

    @property
    def parameters(self) -> int:
        """Parameters that travel: without buffers and the classifier."""
        names = {name for name, _ in self.backbone.skeleton().named_parameters()}
        return sum(t.numel() for name, t in self.weights.items() if name in names)

    def to_bytes(self) -> bytes:
        """A safetensors file with the mask and the backbone's description in its header."""
        header = {
            "maskvote": FORMAT,
            "backbone": self.backbone.to_json(),
            "structure": self.mask.structure.digest,
            "mask": base64.b64encode(self.mask.pack()).decode(),
        }
        return save({k: v.contiguous() for k, v in self.weights.items()}, metadata=header)

    @classmethod
    def from_bytes(cls, data: bytes, structure: Structure) -> SubNetwork:
        """The sub-network in a safetensors file; the tensors are copies.

        Raises WeightsError on a damaged file, MaskError or InputError on a mask of another structure.
        """
        header = _header(data)
        if header.get("maskvote") != FORMAT:
            raise WeightsError(
                f"the file is of format {header.get('maskvote')!r}, not a sub-network of format "
                f"{FORMAT!r}; ask the server again"
            )
        if header.get("structure") != structure.digest:
            raise MaskError(
                f"the sub-network was cut by structure {str(header.get('structure'))[:12]}, "
                f"this is {structure.digest[:12]}; fetch the server's structure again"
            )
        try:
            packed = base64.b64decode(header["mask"], validate=True)
            return cls(Backbone.from_json(header["backbone"]), Mask.unpack(structure, packed), load(data))
        except InputError:
            raise
        except (KeyError, ValueError, SafetensorError) as error:
            raise WeightsError(f"the sub-network is damaged: {error!r}; ask again") from error


def _header(data: bytes) -> dict[str, str]:
    length = int.from_bytes(data[:8], "little")
    try:
        if len(data) < 8 or 8 + length > len(data):
            raise ValueError(f"{len(data)} bytes, header of {length}")
        return json.loads(data[8 : 8 + length]).get("__metadata__", {})
    except (ValueError, AttributeError) as error:
        raise WeightsError(f"this is not a safetensors file: {error}; ask again") from error
