"""Export: the adapted network as a file that other programs read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from common.backbone import Backbone
from common.files import write_whole
from common.tensor_file import write_tensors


def save_network(path: Path, network: nn.Module, backbone: Backbone, classes: Sequence[str]) -> None:
    """Write a network as safetensors, with its backbone's description and class names in the header.

    `common.rebuild.rebuild` makes the network of its tensors again. InputError where it cannot
    be written; the file is there whole or not at all.
    """
    header = {"backbone": backbone.to_json(), "classes": "\n".join(classes)}
    write_whole(path, write_tensors(network.state_dict(), header))
