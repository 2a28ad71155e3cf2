"""Directions: public, the same everywhere, and more telling than any drawn by lot."""

import numpy as np
import pytest
import torch
from torch import nn
from toys import Example, example, images_of

from common.directions import DRAWN_IMAGES, DrawnImages, principal_directions
from common.errors import SignatureError
from common.fitting import all_features
from common.mask import Mask
from common.privacy import DIRECTIONS
from common.subnetwork import SubNetwork


class Flat(nn.Module):
    """Features are the pixels, each times its weight."""

    pretrained_cfg = {"classifier": "classifier"}  # noqa: RUF012

    def __init__(self, weights: list[float]) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor(weights))
        self.classifier = nn.Identity()

    def forward(self, images):
        return self.classifier(images.flatten(1) * self.weights)


@pytest.fixture(scope="module")
def ours() -> Example:
    return example("test_resnet", 32)


@pytest.mark.parametrize("size", [(3, 32, 32), (1, 28, 28), (3, 8, 13), (3, 1, 1)])
def test_drawn_images_are_finite_normalised_and_always_the_same(size):
    images = DrawnImages(size, 5)
    drawn = images.batch(torch.arange(5))
    assert (len(images), drawn.shape, drawn.dtype) == (5, (5, *size), torch.float32)
    assert torch.isfinite(drawn).all()
    assert torch.equal(images.batch(torch.tensor([3])), drawn[3:4])
    if size[1] > 1:
        torch.testing.assert_close(drawn.flatten(1).std(1, correction=0), torch.ones(5))
        assert len(drawn.flatten(1).unique(dim=0)) == 5


def test_drawn_images_are_smooth_as_photographs_are():
    drawn = DrawnImages((3, 64, 64), 8).batch(torch.arange(8))
    near = (drawn[..., 1:] - drawn[..., :-1]).square().mean()
    far = (drawn[..., 32:] - drawn[..., :32]).square().mean()
    assert near < far / 3  # of white noise both are the same


def test_the_directions_are_those_along_which_features_differ_most():
    weights = [10.0, 0.0, 5.0, 0.1] + [1e-3] * 96
    directions = principal_directions(Flat(weights), (1, 10, 10))
    assert directions.shape == (DIRECTIONS, 100)
    np.testing.assert_allclose(directions @ directions.T, np.eye(DIRECTIONS), atol=1e-9)
    strong = directions[:2][:, [0, 2]]
    assert np.linalg.norm(strong, axis=1) == pytest.approx([1, 1], abs=1e-3)


def test_features_that_are_narrow_are_told_whole():
    directions = principal_directions(Flat([1.0] * 9), (1, 3, 3))
    np.testing.assert_allclose(directions.T @ directions, np.eye(9), atol=1e-9)


def test_a_network_that_is_blind_still_has_directions():
    directions = principal_directions(Flat([0.0] * 100), (1, 10, 10))
    np.testing.assert_allclose(directions @ directions.T, np.eye(DIRECTIONS), atol=1e-9)


def test_features_that_are_not_finite_are_refused():
    with pytest.raises(SignatureError, match="fetch the probe again"):
        principal_directions(Flat([float("nan")] * 9), (1, 3, 3))


def test_they_hold_more_of_real_features_than_directions_drawn_by_lot(ours):
    network = SubNetwork.of(ours.backbone, ours.weights, Mask.full(ours.structure)).network(1)
    rows = all_features(network, images_of(ours.backbone, per_class=20)).double().numpy()
    rows -= rows.mean(0)
    few = principal_directions(network, ours.backbone.input_size)[:8]
    drawn = np.linalg.qr(np.random.default_rng(0).normal(size=(rows.shape[1], 8)))[0].T
    assert np.linalg.norm(rows @ few.T) > 1.3 * np.linalg.norm(rows @ drawn.T)


def test_no_seed_of_a_run_changes_them(ours):
    network = SubNetwork.of(ours.backbone, ours.weights, Mask.full(ours.structure)).network(1)
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        np.random.seed(seed)
        found.append(principal_directions(network, ours.backbone.input_size))
    assert np.array_equal(*found)
    assert len(DrawnImages((3, 8, 8))) == DRAWN_IMAGES
