"""Export: the adapted network as a file that other programs read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save
from torch import nn

from common.backbone import Backbone
from common.files import write_whole


def save_network(path: Path, network: nn.Module, backbone: Backbone, classes: Sequence[str]) -> None:
    """Write a network as safetensors, with its backbone's description and class names in the header.

    `common.rebuild.rebuild` makes the network of its tensors again. InputError where it cannot
    be written; the file is there whole or not at all.
    """
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    header = {"backbone": backbone.to_json(), "classes": "\n".join(classes)}
    write_whole(path, save(state, metadata=header))
