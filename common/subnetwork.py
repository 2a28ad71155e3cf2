"""Sub-network: the small dense network that a mask cuts out of the backbone, and how it travels.

The server selects indices into a safetensors file; the receiver rebuilds a timm network on the bytes
that it got (`common.rebuild`). Nothing is unpickled, and on neither side is there a second copy.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from common.backbone import Backbone, Weights
from common.errors import InputError, MismatchError, WeightsError
from common.files import Data
from common.finite import is_finite
from common.half_precision import in_single_precision
from common.mask import Mask
from common.rebuild import rebuild
from common.selection import Selection
from common.structure import Structure
from common.tensor_file import Kind, blank_file, read_tensors, write_tensors

SINGLE, HALF = "1", "2"
"""The formats of files: all tensors are float32, or some are float16. Both are read."""
HEALED = "1"
"""What a file says of tensors that are healed; of others it says nothing."""


def cut(weights: Weights, mask: Mask, within: Mask | None = None) -> dict[str, Tensor]:
    """The tensors that a mask leaves, in the names of the backbone's: copies, the input unchanged.

    `within` is the mask that `weights` have been cut with before (default: none), and must keep all
    that `mask` keeps. With all of a group's consumers' columns zeroed, the backbone computes the
    same. Raises MaskError if a unit is asked for that is gone.
    """
    selection = Selection(mask, within)
    return {name: selection.of(name, tensor) for name, tensor in weights.items()}


def masked(weights: Weights, mask: Mask) -> dict[str, Tensor]:
    """The backbone's tensors (or some of them) with every column zeroed that reads a dropped unit."""
    result = {name: tensor.clone() for name, tensor in weights.items()}
    for group in mask.structure.groups:
        kept = np.append(mask[group.name], True)
        for member in group.members:
            if member.reads and member.tensor in result:
                gone = torch.from_numpy(np.flatnonzero(~kept[member.unit_of]))
                result[member.tensor].index_fill_(member.dim, gone, 0.0)
    return result


@dataclass(frozen=True)
class SubNetwork:
    """What travels: the backbone's description, the mask that cut it, and the tensors left.

    The classifier stays behind: a device's classes are its own. Tensors are float32, or float16 where
    that took half the bytes on the way (common/half_precision.py). They are for one network, which
    takes those of float32 as they are (see `network`). `healed` is whether they have been taught to
    give the whole backbone's features.
    """

    backbone: Backbone
    mask: Mask
    weights: Weights
    healed: bool = False
    _file: memoryview | None = field(default=None, repr=False, compare=False)
    """The file that the tensors already lie in."""

    @classmethod
    def of(cls, backbone: Backbone, weights: Weights, mask: Mask, *, healed: bool = False) -> SubNetwork:
        """The sub-network that a mask cuts out of the backbone's weights, which stay as they are.

        Every tensor is selected straight into its place in the file that `to_bytes` gives, in its own
        precision; on another device than the CPU, it is selected there.
        """
        left = backbone.without_classifiers(weights)
        if not all(tensor.is_cpu for tensor in left.values()):
            return cls(backbone, mask, cut(left, mask), healed)
        selection = Selection(mask)
        kinds = {name: Kind(v.dtype, selection.shape(name, v.shape)) for name, v in left.items()}
        data, places = blank_file(kinds, _metadata(backbone, mask, healed, left))
        with torch.no_grad():
            for name, place in places.items():
                selection.of(name, left[name], place)
        return cls(backbone, mask, places, healed, data.toreadonly())

    def network(self, num_classes: int) -> nn.Module:
        """The network, with a classifier of zeros for so many classes; evaluation mode.

        It computes in float32. It holds these very tensors, but for those of float16, as a device has no
        room for them twice: training it changes the sub-network, and with that every other network made
        of it. Raises WeightsError where a tensor is missing, unknown, or not of the shape and dtype that
        the mask leaves of the backbone's.
        """
        return rebuild(self.backbone, in_single_precision(self.weights), num_classes, self.mask)

    @property
    def parameters(self) -> int:
        """Parameters that travel: without buffers and the classifier."""
        names = {name for name, _ in self.backbone.skeleton().named_parameters()}
        return sum(t.numel() for name, t in self.weights.items() if name in names)

    def to_bytes(self) -> memoryview:
        """A safetensors file with the mask and the backbone's description in its header; read-only.

        Of a sub-network that was just cut it is no copy: what changes its tensors shows in it.
        """
        if self._file is not None:
            return self._file
        words = _metadata(self.backbone, self.mask, self.healed, self.weights)
        return write_tensors(self.weights, words)

    @classmethod
    def from_bytes(cls, data: Data, structure: Structure) -> SubNetwork:
        """The sub-network in a safetensors file; its tensors are the data's own bytes.

        Only data that cannot be written to, as `bytes`, are copied, once; all are read once. Raises
        WeightsError on a damaged file, on a tensor that is not cut as the mask says (what the mask does
        not cut is held against the backbone by `network`) or that holds NaN or infinity, MismatchError on
        a file of another structure, and InputError on a mask or a backbone that is none.
        """
        weights, header = read_tensors(data)
        if (found := header.get("maskvote", "")) not in (SINGLE, HALF):
            raise WeightsError(
                f"the file is of {f'format {found!r}' if found else 'no format'}, not a sub-network of "
                f"format {SINGLE!r} or {HALF!r}; ask the server again, with its version of maskvote"
            )
        if (cut_by := header.get("structure", "")) != structure.digest:
            raise MismatchError(
                f"the sub-network was cut by {f'structure {cut_by[:12]}' if cut_by else 'no structure'}, "
                f"this is {structure.digest[:12]}; fetch the server's structure again"
            )
        try:
            mask = Mask.unpack(structure, base64.b64decode(header["mask"], validate=True))
            backbone = Backbone.from_json(header["backbone"])
        except InputError:
            raise
        except (KeyError, ValueError) as error:
            raise WeightsError(f"the sub-network is damaged: {error!r}; ask again") from error
        _check_cut(weights, mask)
        _check_finite(weights)
        return cls(backbone, mask, weights, header.get("healed") == HEALED)


def _metadata(backbone: Backbone, mask: Mask, healed: bool, weights: Weights) -> dict[str, str]:
    halved = any(tensor.dtype == torch.float16 for tensor in weights.values())
    words = {
        "maskvote": HALF if halved else SINGLE,
        "backbone": backbone.to_json(),
        "structure": mask.structure.digest,
        "mask": base64.b64encode(mask.pack()).decode(),
    }
    return words | {"healed": HEALED} if healed else words


def _check_cut(weights: Weights, mask: Mask) -> None:
    """Raise WeightsError for tensors that do not keep as much of a dimension as the mask does."""
    selection = Selection(mask)
    problems = []
    for name, tensor in weights.items():
        shape = tuple(tensor.shape)
        sizes = selection.sizes(name)
        if any(dim >= len(shape) or shape[dim] != size for dim, size in sizes.items()):
            left = ", ".join(f"{size} in dimension {dim}" for dim, size in sizes.items())
            problems.append(f"{name} is {shape}, the mask leaves {left}")
    if problems:
        raise WeightsError(
            f"the tensors are not cut as the mask says: {'; '.join(problems[:3])}; ask again"
        )


def _check_finite(weights: Weights) -> None:
    """Raise WeightsError for tensors that no network computes anything with."""
    strange = [name for name, tensor in weights.items() if not is_finite(tensor)]
    if strange:
        more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
        raise WeightsError(
            f"NaN or infinity is in {', '.join(strange[:3])}{more} of the sub-network, whose values are "
            "to be finite; the server would send the same again, so tell its operator"
        )
