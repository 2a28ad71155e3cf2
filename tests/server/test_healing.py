"""Healing: what is cut out learns the whole backbone's features, and nothing else is changed."""

import time
from itertools import count

import numpy as np
import pytest
import torch
from glyph_tasks import glyph_images
from healing_tasks import glyph_backbone, mask_of, masks_of, public_glyphs, settled_weights

from common.backbone import features
from common.errors import InputError, TaskDataError
from common.fitting import all_features
from common.images import PixelImages
from common.rebuild import rebuild
from common.subnetwork import cut
from server.healing.heal import PublicImages, distance, heal, heal_mask
from server.settings import HealingSettings

SETTINGS = HealingSettings(iterations=25, batch_size=32)
FEW = HealingSettings(iterations=3, batch_size=8)


class Healer:
    """Heals one model's weights on glyphs."""

    def __init__(self, model: str) -> None:
        self.backbone = glyph_backbone(model)
        self.structure = self.backbone.structure()
        self.weights = settled_weights(self.backbone)
        self.public = public_glyphs(self.backbone, self.weights)

    def heal(self, settings=FEW, seed=0, **how):
        generator = torch.Generator().manual_seed(seed)
        masks = masks_of(self.structure)
        return heal(self.backbone, self.weights, masks, self.public, settings, generator, **how)

    def heal_mask(self, mask, settings=FEW, **how):
        generator = torch.Generator().manual_seed(0)
        return heal_mask(self.backbone, self.weights, mask, self.public, settings, generator, **how)

    def distance(self, weights, mask) -> float:
        return distance(self.backbone, weights, mask, self.public)


@pytest.fixture(scope="module", params=["test_resnet", "test_vit"])
def healer(request) -> Healer:
    return Healer(request.param)


@pytest.fixture(scope="module")
def resnet() -> Healer:
    return Healer("test_resnet")


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_whatever_is_cut_out_of_healed_weights_is_nearer_to_the_backbone(healer):
    unseen = mask_of(healer.structure, seed=10**7)
    assert healer.distance(healer.heal(SETTINGS), unseen) < 0.8 * healer.distance(healer.weights, unseen)


def test_a_network_that_is_healed_alone_is_nearer_to_the_backbone(resnet):
    mask = mask_of(resnet.structure)
    whole = dict(resnet.weights) | scattered(resnet.heal_mask(mask, SETTINGS), resnet, mask)
    assert resnet.distance(whole, mask) < 0.8 * resnet.distance(resnet.weights, mask)


def scattered(left, healer, mask):
    """Whole tensors that have, where the mask keeps them, the values of those that it left."""
    where = {name: torch.arange(t.numel()).reshape(t.shape) for name, t in healer.weights.items()}
    places = cut(where, mask)
    result = {}
    for name, tensor in left.items():
        whole = healer.weights[name].clone()
        whole.view(-1)[places[name].flatten()] = tensor.flatten()
        result[name] = whole
    return result


def test_the_whole_backbone_is_at_no_distance_from_itself():
    healer = Healer("test_vit")
    everything = mask_of(healer.structure, keep=1.0)
    assert healer.distance(healer.weights, everything) == pytest.approx(0, abs=1e-4)


def test_a_network_whose_last_maps_are_one_number_is_judged_on_any_number_of_images():
    """Its batch norms refuse a batch of a single image."""
    wide = Healer("mobilenetv3_small_050")
    pixels = glyph_images("abcdefgh", 25, wide.backbone, seed=1).pixels
    for number in (2, 65, 193):
        images = PixelImages(pixels[:number], torch.zeros(number), wide.backbone)
        wide.public = PublicImages.of(wide.backbone, wide.weights, images)
        assert 0 < wide.distance(wide.weights, mask_of(wide.structure)) < float("inf")


def test_of_features_that_are_units_themselves_those_that_are_kept_are_compared():
    """MobileNetV3's last convolution is cut like any other, and the classifier reads what is left."""
    wide = Healer("mobilenetv3_small_050")
    mask = mask_of(wide.structure)
    left = wide.heal_mask(mask, FEW)
    network = rebuild(wide.backbone, cut(wide.backbone.without_classifiers(wide.weights), mask), 2, mask)
    read = wide.structure.dims[wide.backbone.classifier_tensors[0]]
    ((_, units),) = read
    kept = torch.from_numpy(np.append(mask.kept, True)[units])
    assert 0 < kept.sum() < len(kept)
    assert left["conv_head.weight"].shape[0] == kept.sum()
    images = wide.public.images
    assert len(images) <= 64
    with torch.no_grad():
        given = features(network.train(), images.batch(torch.arange(len(images))))
    away = (given - wide.public.features[:, kept]) / wide.public.spread[kept]
    assert wide.distance(wide.weights, mask) == pytest.approx(float(away.square().mean()), rel=1e-3)


def test_weights_that_are_given_stay_and_so_do_buffers_and_the_classifier(healer):
    before = {name: tensor.clone() for name, tensor in healer.weights.items()}
    healed = healer.heal()
    assert same(healer.weights, before)
    parameters = {name for name, _ in healer.backbone.skeleton().named_parameters()}
    changed = {name for name in healed if not torch.equal(healed[name], before[name])}
    assert changed == parameters - {*healer.backbone.classifier_tensors}
    for name, tensor in healed.items():
        assert (tensor.shape, tensor.dtype) == (before[name].shape, before[name].dtype)
        assert not tensor.requires_grad


def test_what_is_healed_for_a_mask_is_of_the_shapes_that_it_cuts_and_runs(healer):
    mask = mask_of(healer.structure)
    healed = healer.heal_mask(mask)
    plain = {k: v for k, v in healer.weights.items() if k not in healer.backbone.classifier_tensors}
    assert {n: t.shape for n, t in healed.items()} == {n: t.shape for n, t in cut(plain, mask).items()}
    network = rebuild(healer.backbone, healed, num_classes=3, mask=mask)
    images = glyph_images("ab", 2, healer.backbone, seed=3)
    assert network(images.batch(torch.arange(4))).shape == (4, 3)


def test_a_mask_cuts_a_network_that_runs_out_of_healed_weights(healer):
    mask = mask_of(healer.structure, seed=5)
    network = rebuild(healer.backbone, cut(healer.heal(), mask), mask=mask)
    assert all_features(network, glyph_images("ab", 2, healer.backbone, seed=3)).isfinite().all()


def test_no_iterations_and_no_time_change_nothing(resnet):
    assert same(resnet.heal(HealingSettings(iterations=0)), resnet.weights)
    assert same(resnet.heal(HealingSettings(iterations=9, seconds=1e-9)), resnet.weights)


def test_healing_ends_in_time(resnet):
    began = time.monotonic()
    resnet.heal(HealingSettings(iterations=10**6, seconds=0.2, batch_size=8))
    assert 0.2 <= time.monotonic() - began < 10


def test_the_learning_rate_is_planned_for_the_time_that_there_is(resnet, monkeypatch):
    """With these many iterations it would not yet have risen after the few that there is time for."""
    ticks = count()
    monkeypatch.setattr("server.healing.heal.time.monotonic", lambda: next(ticks) / SETTINGS.iterations)
    healed = resnet.heal(HealingSettings(iterations=10**6, seconds=2, batch_size=32))
    assert next(ticks) <= 3 * SETTINGS.iterations
    unseen = mask_of(resnet.structure, seed=10**7)
    assert resnet.distance(healed, unseen) < 0.9 * resnet.distance(resnet.weights, unseen)


def test_healing_stops_once_it_is_told_to_and_keeps_what_it_has(resnet):
    seen, asked = [], count()
    healed = resnet.heal(
        HealingSettings(iterations=50, batch_size=8),
        watch=lambda done, total: seen.append((done, total)),
        stop=lambda: next(asked) == 2,
    )
    assert seen == [(1, 50), (2, 50)]
    assert not same(healed, resnet.weights)


def test_the_same_seed_heals_alike_and_another_does_not(resnet):
    first = resnet.heal(seed=1)
    assert same(first, resnet.heal(seed=1))
    assert not same(first, resnet.heal(seed=2))


def test_only_the_images_that_are_asked_for_are_used(resnet):
    class Noting:
        labels = resnet.public.images.labels
        seen: set = set()  # noqa: RUF012 - one test's

        def __len__(self):
            return len(self.labels)

        def batch(self, indices):
            self.seen |= {*indices.tolist()}
            return resnet.public.images.batch(indices)

    public = PublicImages(Noting(), resnet.public.features)
    chosen = torch.tensor([3, 5, 8, 13])
    heal(resnet.backbone, resnet.weights, masks_of(resnet.structure), public, FEW,
         torch.Generator(), indices=chosen)  # fmt: skip
    assert Noting.seen == {3, 5, 8, 13}


def test_the_learning_rate_rises_to_its_height_and_falls_to_nothing():
    settings = HealingSettings(learning_rate=0.5, warm_up=0.2)
    assert settings.rate(0) == pytest.approx(0.02)
    assert settings.rate(0.1) == pytest.approx((0.02 + 0.5) / 2)
    assert settings.rate(0.2) == pytest.approx(0.5)
    assert settings.rate(0.6) == pytest.approx(0.25)
    assert settings.rate(1) == pytest.approx(0)


@pytest.mark.parametrize("images", [2, 20])
def test_the_nearest_images_are_taken_from_every_class_in_turn(images):
    """Features on a circle, in degrees; the classes' means are at 0 and at 90, the center at nothing."""
    degrees = np.radians([10, 70, 3, 100, 180, 20, 95, -90])
    circle = np.stack([np.cos(degrees), np.sin(degrees)], axis=1).astype(np.float16)
    backbone = glyph_backbone()
    labelled = glyph_images("abcdefgh", 1, backbone, seed=0)
    public = PublicImages(labelled, torch.from_numpy(circle) + torch.tensor([1.0, 2.0]).half())
    means = np.array([[2.0, 2.0], [1.0, 3.0]], dtype=np.float16)
    found = public.nearest(means, np.array([1.0, 2.0], dtype=np.float32), images).tolist()
    assert found[:5] == [2, 6, 0, 3, 5][: len(found)]
    assert (len(found), {*found}) == ((2, {2, 6}) if images == 2 else (8, {*range(8)}))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"iterations": -1}, "-1 iterations"),
        ({"seconds": 0.0}, "0.0 seconds"),
        ({"seconds": float("nan")}, "nan seconds"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"warm_up": 1.0}, "warm_up is 1.0"),
    ],
)
def test_settings_out_of_range_are_refused(changes, says):
    with pytest.raises(InputError, match=says):
        HealingSettings(**changes)


def test_features_that_are_not_the_images_are_refused(resnet):
    images, features = resnet.public.images, resnet.public.features
    for wrong in (features[1:], features[0], features * float("nan")):
        with pytest.raises(TaskDataError, match="public images"):
            PublicImages(images, wrong)
