"""Networks as devices keep them: cut, with batch norms and a classifier that are somebody's own."""

import timm
import torch
from torch import nn

from client.export import SavedNetwork
from common.backbone import Backbone
from common.importance import magnitude
from common.mask import Mask
from common.rebuild import rebuild
from common.subnetwork import cut

CLASSES = ("owl", "wren", "[red] kite", ":eagle:")


def cut_network(model: str, **arguments) -> SavedNetwork:
    """A third of every group of a small network, rounded up: odd widths, one of three heads."""
    backbone = Backbone.from_timm(model, num_classes=4, image_size=32, arguments=arguments)
    structure = backbone.structure()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = timm.create_model(model, num_classes=4, **backbone.arguments)
        for name, tensor in network.state_dict().items():
            if name.endswith("running_mean"):
                tensor.normal_()
            elif name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
        nn.init.normal_(network.get_submodule(backbone.classifier).weight)
    weights = dict(network.state_dict())
    third = [-(-units // 3) for units in structure.sizes]
    mask = Mask.keep_top(structure, magnitude(weights, structure), third)
    return SavedNetwork(rebuild(backbone, cut(weights, mask)), backbone, CLASSES)
