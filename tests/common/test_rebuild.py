"""A device rebuilds what was cut elsewhere, in a process that never saw the server."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from small_models import SMALL, small
from torch import nn

from common.backbone import features
from common.importance import magnitude
from common.mask import Mask
from common.rebuild import rebuild
from common.subnetwork import SubNetwork, masked

ROOT = Path(__file__).parents[2]

DEVICE = """
import sys
from pathlib import Path
import numpy as np
import torch
from common.backbone import features
from common.structure import Structure
from common.subnetwork import SubNetwork

for path in sorted(Path(sys.argv[1]).glob("*.structure")):
    structure = Structure.from_json(path.read_bytes())
    subnetwork = SubNetwork.from_bytes(path.with_suffix(".safetensors").read_bytes(), structure)
    network = subnetwork.network(num_classes=3)
    with torch.no_grad():
        given = features(network, torch.ones(1, *subnetwork.backbone.input_size)).numpy()
    expected = np.load(path.with_suffix(".npy"))
    assert np.allclose(given, expected, rtol=1e-3, atol=1e-4), path.stem
    print(path.stem)
assert not any(module.split(".")[0] in ("server", "sqlalchemy") for module in sys.modules)
"""


@pytest.fixture(scope="module")
def cut_to_a_third(tmp_path_factory) -> Path:
    """A directory: a sub-network of every family, its structure, and what the masked backbone gives."""
    place = tmp_path_factory.mktemp("thirds")
    for model in SMALL:
        backbone = small(model)
        structure = backbone.structure()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = timm.create_model(model, num_classes=4, **backbone.arguments).eval()
            for parameter in network.parameters():
                nn.init.normal_(parameter, std=0.2)
        weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        # ConvNeXt V2 divides by a mean over its hidden units, so that cutting them is no masking.
        counts = [-(-g.units // 3) if g.exact else g.units for g in structure.groups]
        mask = Mask.keep_top(structure, magnitude(weights, structure), counts)
        (place / f"{model}.structure").write_text(structure.to_json())
        (place / f"{model}.safetensors").write_bytes(SubNetwork.of(backbone, weights, mask).to_bytes())
        network.load_state_dict(masked(weights, mask))
        with torch.no_grad():
            given = features(network, torch.ones(1, *backbone.input_size)).numpy()
        read = dict(structure.dims.get(backbone.classifier_tensors[0], ())).get(1)
        kept = slice(None) if read is None else np.append(mask.kept, True)[read]
        np.save(place / f"{model}.npy", given[:, kept])
    return place


def test_a_network_is_where_its_weights_are_with_all_that_it_computes_by_itself():
    """Swin's indices of positions are in no file."""
    backbone = small("swin_tiny_patch4_window7_224")
    network = rebuild(backbone, backbone.skeleton().state_dict())
    assert {buffer.device.type for buffer in network.buffers()} == {"meta"}


def test_every_family_is_loaded_where_the_server_never_was_and_computes_what_masking_does(cut_to_a_third):
    ran = subprocess.run(
        [sys.executable, "-c", DEVICE, str(cut_to_a_third)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == sorted(SMALL)
