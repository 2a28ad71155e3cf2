"""Sub-network: the small dense network that a mask cuts out of the backbone, and how it travels.

The server selects indices and sends the tensors as safetensors; the receiver rebuilds a timm network
from them (`common.rebuild`). Nothing is unpickled.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from common.backbone import Backbone, Weights
from common.errors import InputError, MaskError, WeightsError
from common.mask import Mask
from common.rebuild import rebuild
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
