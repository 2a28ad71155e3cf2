"""Activations: what is counted is what a graph holds that frees every tensor after its last use."""

import weakref
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from common.backbone import Backbone
from common.errors import InputError
from common.mask import Mask
from common.structure import Structure
from common.structure.cost import Cost, Term, largest
from common.subnetwork import SubNetwork

MODELS = {
    "resnet18": 64,
    "mobilenetv3_small_050": 64,
    "ese_vovnet19b_dw": 64,
    "convnext_atto": 64,
    "vit_tiny_patch16_224": 64,
}


class Held(TorchDispatchMode):
    """How many bytes of tensors other than `known` are alive at most."""

    def __init__(self, known) -> None:
        super().__init__()
        self.most = self._now = 0
        self._counted = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, list | tuple) else [result]:
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._counted:
            return
        self._counted.add(key)
        self._now += size
        self.most = max(self.most, self._now)

        def freed() -> None:
            self._counted.discard(key)
            self._now -= size

        weakref.finalize(storage, freed)


def held(network: torch.nn.Module, backbone: Backbone) -> int:
    """The most bytes of activations that the network's graph holds at once for one image."""
    image = torch.zeros(1, *backbone.input_size)
    graph = torch.export.export(network, (image,), strict=False).module()
    known = [*graph.parameters(), *graph.buffers()]
    with torch.no_grad(), Held(known) as counted:
        images = [image.clone()]
        torch.fx.Interpreter(graph).boxed_run(images)
    return counted.most


@pytest.mark.parametrize(("model", "size"), MODELS.items(), ids=MODELS)
def test_the_bytes_counted_are_those_that_the_graph_holds_whole_and_cut(model, size):
    backbone = Backbone.from_timm(model, num_classes=7, image_size=size)
    structure = backbone.structure(("internal", "residual"))
    whole = timm.create_model(model, num_classes=7, **backbone.arguments).eval()
    assert structure.activation_bytes() == held(whole, backbone)
    internal = structure.only(("internal",))
    lot = np.random.default_rng(0)
    mask = Mask.keep_top(
        internal,
        {group.name: lot.random(group.units) for group in internal.groups},
        tuple(max(1, group.units // 3) for group in internal.groups),
    )
    cut = SubNetwork.of(backbone, backbone.without_classifiers(whole.state_dict()), mask).network(4)
    assert internal.activation_bytes(mask.counts, 4) == held(cut, backbone)


def test_moments_that_are_never_the_largest_are_left_out():
    one, two = ((0, ((0, 1),)),), ((0, ((1, 1),)),)
    small, large = Cost((Term(2, one),), ()), Cost((Term(3, one), Term(1, two)), ())
    other = Cost((Term(4, one),), (Term(1, ()),))
    assert largest([small, large, small]) == (large,)
    assert largest([large, other, large]) == (large, other)
    assert largest([]) == ()


def test_a_structure_that_tells_no_activations_says_so():
    backbone = Backbone.from_timm("test_resnet", num_classes=3, image_size=32)
    known = backbone.structure()
    assert Structure.from_json(known.to_json()).activation_costs == known.activation_costs
    before = replace(known, activation_costs=())
    assert before.digest == known.digest
    with pytest.raises(InputError, match="found the library anew"):
        before.activation_bytes()
