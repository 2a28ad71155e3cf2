import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from toys import Mlp, Residual, example, found_in, images_of, random_mask

from common.importance import Taylor, magnitude
from common.mask import Mask
from common.rebuild import rebuild
from common.subnetwork import cut, masked

# -- magnitude -------------------------------------------------------------------------------------


def test_magnitude_is_the_mean_absolute_weight_of_a_units_row():
    """What reads the unit and what only scales it (bias, norm) does not count."""
    weights = {
        "fc1.weight": torch.arange(7.0)[:, None] * torch.tensor([1.0, -1.0]).repeat(6),
        "fc1.bias": torch.full((7,), 100.0),
        "fc2.weight": torch.full((5, 7), -2.0),
        "fc.weight": torch.full((3, 5), 100.0),
    }
    scores = magnitude(weights, found_in(Mlp))
    assert scores["fc1.weight:0"].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert scores["fc2.weight:0"].tolist() == [2.0] * 5


def test_magnitude_of_order_two_is_the_root_of_the_mean_square():
    weights = {
        "fc1.weight": torch.tensor([3.0, 4.0]).repeat(7, 6),
        "fc1.bias": torch.zeros(7),
        "fc2.weight": torch.full((5, 7), -2.0),
        "fc.weight": torch.zeros(3, 5),
    }
    scores = magnitude(weights, found_in(Mlp), order=2)
    assert scores["fc1.weight:0"] == pytest.approx(np.full(7, np.sqrt(12.5)))
    assert scores["fc2.weight:0"] == pytest.approx(np.full(5, 2.0))


def test_magnitude_adds_up_all_layers_that_make_a_unit():
    """A channel of a residual stream is made by the stem and by the branch's last layer."""
    weights = {
        "stem.weight": torch.full((4, 3, 1, 1), 1.0),
        "conv1.weight": torch.full((6, 4, 3, 3), 7.0),
        "conv2.weight": torch.full((4, 6, 1, 1), 10.0),
        "fc.weight": torch.full((5, 4), 100.0),
    }
    for name in ("bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var", "conv2.bias"):
        weights[name] = torch.full((6 if "bn1" in name else 4,), 1000.0)
    scores = magnitude(weights, found_in(Residual))
    assert scores["stem.weight:0"].tolist() == [11.0] * 4
    assert scores["conv1.weight:0"].tolist() == [7.0] * 6


# -- Taylor ----------------------------------------------------------------------------------------


class Product(nn.Module):
    """y = fc(fc1(x)) with two hidden units, in the names of the toy structure below."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(12, 2, bias=False)
        self.fc = nn.Linear(2, 1, bias=False)

    def forward(self, images):
        return self.fc(self.fc1(images.flatten(1)))


def test_taylor_of_a_linear_network_is_each_units_share_of_the_output():
    """With y = 3 h1 + 4 h2 and the loss y, fading out unit i costs its own term, whatever its sign;
    over two batches with h = (1, 2) and h = (-3, 0) the means are 6 and 4."""
    network = Product()
    taylor = Taylor(network, Mask.full(found_in(Product)))
    with torch.no_grad():
        network.fc1.weight.zero_()
        network.fc1.weight[0, 0] = network.fc1.weight[1, 1] = 1.0
        network.fc.weight.copy_(torch.tensor([[3.0, 4.0]]))
    for first, second in ((1.0, 2.0), (-3.0, 0.0)):
        images = torch.zeros(1, 3, 2, 2)
        images[0, 0, 0] = torch.tensor([first, second])
        network.zero_grad()
        network(images).sum().backward()
        taylor.observe()
    assert taylor.scores()["fc1.weight:0"].tolist() == [(3 + 9) / 2, (8 + 0) / 2]


@pytest.fixture(scope="module")
def double():
    """A cut network in double precision with a batch of images, and the mask that cut it."""
    ours = example("test_resnet", 32)
    mask = random_mask(ours.structure, 0.3)
    network = rebuild(ours.backbone, cut(ours.weights, mask)).double()
    images = images_of(ours.backbone, per_class=3)
    return network, mask, images.batch(torch.arange(9)).double(), images.labels


def loss_of(network, images, labels):
    return functional.cross_entropy(network(images), labels)


def test_taylor_is_the_derivative_of_the_loss_as_a_unit_fades_out(double):
    """By central differences of what the network computes with the unit's readers scaled, for the
    first held unit of every group; it is given at the unit's place in the backbone."""
    network, mask, images, labels = double
    network.zero_grad()
    loss_of(network, images, labels).backward()
    taylor = Taylor(network, mask)
    taylor.observe()
    scores = taylor.scores()
    tensors = dict(network.named_parameters())
    for group in mask.structure.groups:
        unit = int(np.flatnonzero(mask[group.name])[0])
        losses = []
        for scale in (1 - 1e-5, 1 + 1e-5):
            with torch.no_grad():
                scaled = [(tensors[m.tensor].select(m.dim, 0), scale) for m in group.members if m.reads]
                for column, factor in scaled:
                    column.mul_(factor)
                losses.append(float(loss_of(network, images, labels)))
                for column, factor in scaled:
                    column.div_(factor)
        derivative = abs(losses[1] - losses[0]) / 2e-5
        assert scores[group.name][unit] == pytest.approx(derivative, rel=1e-4, abs=1e-8), group.name


def test_units_that_the_network_does_not_hold_come_last_and_no_score_is_nan(double):
    network, mask, images, labels = double
    network.zero_grad()
    loss_of(network, images, labels).backward()
    taylor = Taylor(network, mask)
    taylor.observe()
    for name, scores in taylor.scores().items():
        assert (np.isneginf(scores) == ~mask[name]).all()
        assert (scores[mask[name]] >= 0).all()
        assert (scores[mask[name]] > 0).any()


def test_a_cut_network_ranks_its_units_as_the_masked_backbone_does():
    """Scores are in the backbone's coordinates: those of kept units are the same in both."""
    ours = example("test_resnet", 32)
    mask = random_mask(ours.structure, 0.3, kinds=["internal"])
    images = images_of(ours.backbone, per_class=3)
    batch, labels = images.batch(torch.arange(9)), images.labels
    found = []
    for network, held in (
        (rebuild(ours.backbone, cut(ours.weights, mask)), mask),
        (rebuild(ours.backbone, masked(ours.weights, mask)), Mask.full(ours.structure)),
    ):
        loss_of(network, batch, labels).backward()
        taylor = Taylor(network, held)
        taylor.observe()
        found.append(taylor.scores())
    for name, kept in mask.items():
        assert found[0][name][kept] == pytest.approx(found[1][name][kept], rel=1e-3, abs=1e-6)


def test_where_nothing_was_observed_held_units_score_zero():
    ours = example("test_resnet", 32)
    mask = random_mask(ours.structure, 0.3)
    scores = Taylor(rebuild(ours.backbone, cut(ours.weights, mask)), mask).scores()
    assert all((scores[name][mask[name]] == 0).all() for name in mask)
