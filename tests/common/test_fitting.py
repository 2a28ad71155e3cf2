import math
from collections.abc import Sequence
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from toys import Example, example, images_of, task_of

from common.backbone import Backbone
from common.best_network import held_out
from common.errors import Diverged
from common.fitting import (
    SCALES,
    GaussianClasses,
    accuracy,
    all_features,
    choose_classifier,
    examine,
    fit,
    recalibrate_batch_norm,
    start_from_means,
)
from common.images import PixelImages
from common.mask import Mask
from common.rebuild import rebuild
from common.subnetwork import SubNetwork


@pytest.fixture(scope="module")
def ours() -> Example:
    return example("test_resnet", 32)


def network_of(ours: Example, classes: int = 3) -> Any:
    whole = SubNetwork.of(ours.backbone, ours.weights, Mask.full(ours.structure))
    return whole.network(classes)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Two classes around (1, 0) and (-1, 0), both with covariance diag(1, 4).
CORNERS = torch.tensor([[1.0, 2.0], [1.0, -2.0], [-1.0, 2.0], [-1.0, -2.0]], dtype=torch.float64)
ROWS = torch.cat([CORNERS + torch.tensor([1.0, 0.0]), CORNERS - torch.tensor([1.0, 0.0])])
LABELS = torch.tensor([0] * 4 + [1] * 4)


def test_gaussian_classes_are_means_counts_and_the_covariance_within_classes():
    found = GaussianClasses.of(ROWS, LABELS, 2)
    assert found.means.tolist() == [[1, 0], [-1, 0]]
    assert found.counts.tolist() == [4, 4]
    assert found.covariance.tolist() == [[1, 0], [0, 4]]


@pytest.mark.parametrize(
    ("shrinkage", "variances"),
    # Half the trace is 2.5: the covariance is drawn to 2.5 times the identity.
    [(0.0, (1.0, 4.0)), (0.5, (1.75, 3.25)), (1.0, (2.5, 2.5))],
)
def test_discriminant_analysis_in_the_plane_is_as_by_hand(shrinkage, variances):
    """Weights are the inverse covariance times the mean; the bias is log 1/2 - mean W mean / 2."""
    weight, bias = GaussianClasses.of(ROWS, LABELS, 2).classifier(shrinkage)
    along = 1 / variances[0]
    assert weight.flatten().tolist() == pytest.approx([along, 0, -along, 0])
    assert bias.tolist() == pytest.approx([math.log(0.5) - along / 2] * 2)


def test_discriminant_analysis_weighs_directions_by_how_little_they_vary():
    """Means (1, 4) and (-1, -4) with variances 1 and 4: the weights are 1 and 1."""
    rows = torch.cat([CORNERS + torch.tensor([1.0, 4.0]), CORNERS - torch.tensor([1.0, 4.0])])
    weight, _ = GaussianClasses.of(rows, LABELS, 2).classifier(0.0)
    assert weight[0].tolist() == pytest.approx([1, 1])


def test_with_a_shrinkage_of_one_and_equal_classes_the_nearest_mean_wins():
    rows = torch.randn(300, 5, generator=generator(), dtype=torch.float64) * torch.tensor([1, 2, 3, 4, 5])
    labels = torch.arange(300) % 3
    found = GaussianClasses.of(rows, labels, 3)
    weight, bias = found.classifier(1.0)
    nearest = torch.cdist(rows, found.means).argmin(1)
    assert torch.equal((rows @ weight.T + bias).argmax(1), nearest)


def test_a_class_without_images_never_wins_and_a_frequent_one_wins_more():
    rows = torch.cat([ROWS, ROWS[:4]])
    found = GaussianClasses.of(rows, torch.cat([LABELS, LABELS[:4]]), 3)
    weight, bias = found.classifier(0.5)
    assert not ((10 * rows @ weight.T + bias).argmax(1) == 2).any()
    at_the_middle = weight @ torch.zeros(2, dtype=torch.float64) + bias
    log_odds = at_the_middle[0] - at_the_middle[1]
    assert float(log_odds) == pytest.approx(math.log(8 / 4))


def test_features_that_never_vary_do_no_harm():
    """One image a class: the covariance is zero, the classifier finite."""
    found = GaussianClasses.of(torch.eye(3, dtype=torch.float64), torch.arange(3), 3)
    for shrinkage in (0.03, 1.0):
        weight, bias = found.classifier(shrinkage)
        assert torch.isfinite(weight).all()
        assert torch.isfinite(bias).all()


# -- batch norm ------------------------------------------------------------------------------------


class Normalised(nn.Module):
    """A batch norm that sees the images themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.norm: Any = nn.BatchNorm2d(3, momentum=0.3)
        self.norm.register_buffer("running_mean", torch.full((3,), 100.0))

    def forward(self, images):
        return self.norm(images)


def test_batch_norm_statistics_become_those_of_the_images(ours):
    images = images_of(ours.backbone, per_class=20)
    network = Normalised()
    recalibrate_batch_norm(network, images, generator(), count=60)
    data = images.batch(torch.arange(60)).transpose(0, 1).flatten(1)
    assert torch.allclose(network.norm.running_mean, data.mean(1), atol=1e-5)
    assert torch.allclose(network.norm.running_var, data.var(1), rtol=1e-4)
    assert network.norm.momentum == 0.3
    assert not network.norm.training


def lit_images(backbone: Backbone, count: int) -> PixelImages:
    """Some bright, some dark: what tells them apart is the same in all of an image."""
    images = images_of(backbone, count, classes=1)
    light = torch.rand(count, 1, 1, 1, generator=generator())
    return PixelImages((images.pixels * light).byte(), images.labels, backbone)


@pytest.mark.parametrize("batch", [33, 32, 8, 3, 2, 1])
def test_one_batch_norms_statistics_are_of_all_images_however_many_fit_at_a_time(ours, batch):
    """At once, as 32 and one, or one by one: nothing of the variance between parts is lost."""
    images = lit_images(ours.backbone, 33)
    network = Normalised()
    recalibrate_batch_norm(network, images, generator(), 33, batch)
    data = images.batch(torch.arange(33)).transpose(0, 1).flatten(1)
    assert torch.allclose(network.norm.running_mean, data.mean(1), atol=1e-5)
    assert torch.allclose(network.norm.running_var, data.var(1), rtol=1e-4)


class Deep(nn.Module):
    """Four batch norms behind each other; the last one sees one value of each image."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for channels, width, pool in ((3, 16, 4), (16, 16, 2), (16, 16, 4), (16, 64, 1)):
            conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(width), nn.ReLU(), nn.AvgPool2d(pool)]
        self.layers = nn.Sequential(*layers)

    def forward(self, images):
        return self.layers(images)


@pytest.mark.parametrize("batch", [32, 3, 2, 1])
def test_deep_batch_norms_statistics_hardly_depend_on_how_many_images_fit(ours, batch):
    """Those of all images at once are right: each layer's are of what reaches it then."""
    images = lit_images(ours.backbone, 400)
    found: list[Any] = []
    with torch.random.fork_rng(devices=[]):
        for at_once in (len(images), batch):
            network = Deep()
            recalibrate_batch_norm(network, images, generator(), len(images), at_once)
            found.append([m for m in network.modules() if isinstance(m, nn.BatchNorm2d)])
    for right, norm in zip(*found, strict=True):
        ratio = norm.running_var / right.running_var
        assert float(ratio.log().abs().mean()) < 0.1
        apart = (norm.running_mean - right.running_mean) / right.running_var.sqrt()
        assert float(apart.abs().mean()) < 0.05


def test_batch_norm_sees_at_most_the_count_of_images(ours):
    """The first ones of the generator's permutation."""
    images = images_of(ours.backbone, per_class=20)
    network = Normalised()
    recalibrate_batch_norm(network, images, generator(5), count=7)
    chosen = images.batch(torch.randperm(60, generator=generator(5))[:7]).transpose(0, 1).flatten(1)
    assert torch.allclose(network.norm.running_mean, chosen.mean(1), atol=1e-5)


def test_every_layers_statistics_are_of_what_reaches_it_then(ours):
    """In a cut network as well: a second calibration on the same images changes nothing."""
    images = images_of(ours.backbone, per_class=10)
    network = network_of(ours)
    recalibrate_batch_norm(network, images, generator(), 30)
    once = {k: v.clone() for k, v in network.state_dict().items()}
    recalibrate_batch_norm(network, images, generator(), 30)
    again = network.state_dict()
    assert all(torch.allclose(once[name], again[name], atol=1e-5) for name in once)
    assert not torch.allclose(once["bn1.running_mean"], ours.weights["bn1.running_mean"], atol=1e-2)


def test_a_network_without_batch_norm_and_a_task_of_one_image_are_left_as_they_are(ours):
    vit = example("test_vit", 32)
    network = rebuild(vit.backbone, vit.weights)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    recalibrate_batch_norm(network, images_of(vit.backbone, per_class=4), generator(), 12)
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    single = Normalised()
    recalibrate_batch_norm(single, images_of(ours.backbone, per_class=1, classes=1), generator(), 12)
    assert single.norm.running_mean.tolist() == [100.0] * 3


# -- fitting a network -----------------------------------------------------------------------------


def test_a_fitted_network_is_far_better_than_chance_without_a_gradient(ours):
    task = task_of(ours.backbone)
    network = network_of(ours)
    before = {k: v.clone() for k, v in network.named_parameters()}
    assert accuracy(network, task.evaluation) == pytest.approx(1 / 3)
    found = fit(network, ours.backbone, task.train, 3, generator(), 2048)
    assert accuracy(network, task.evaluation) > 0.8
    assert found.classes.counts.tolist() == [12, 12, 12]
    changed = {k for k, v in network.named_parameters() if not torch.equal(v, before[k])}
    assert changed == {"fc.weight", "fc.bias"}


def test_the_same_seed_fits_the_same_network(ours):
    task = task_of(ours.backbone)
    fitted = []
    for seed in (3, 3, 4):
        network = network_of(ours)
        fit(network, ours.backbone, task.train, 3, generator(seed), 20)
        fitted.append(network.fc.weight.detach().clone())
    assert torch.equal(fitted[0], fitted[1])
    assert not torch.equal(fitted[0], fitted[2])


def test_fitting_sees_at_most_the_count_of_images(ours):
    found = fit(network_of(ours), ours.backbone, task_of(ours.backbone).train, 3, generator(), 10)
    assert len(found.labels) == len(found.features) == 10


def uneven_images(backbone: Backbone, counts: Sequence[int], seed: int = 0) -> PixelImages:
    """So many images of each class, sorted by class as in a directory."""
    images = images_of(backbone, max(counts), len(counts), seed)
    chosen = [torch.nonzero(images.labels == k).flatten()[:n] for k, n in enumerate(counts)]
    return PixelImages(images.pixels[torch.cat(chosen)], images.labels[torch.cat(chosen)], backbone)


UNEVEN = (60, 60, 60, 60, 2, 2, 2, 2)


def test_a_rare_class_is_looked_at_however_few_images_are(ours):
    """A uniform draw of 24 of 248 images would have on average 6 of the 8 rare ones' classes missing."""
    images = uneven_images(ours.backbone, UNEVEN)
    for seed in range(3):
        network = network_of(ours, classes=8)
        found = fit(network, ours.backbone, images, 8, generator(seed), count=24)
        assert torch.bincount(found.labels).tolist() == [4, 4, 4, 4, 2, 2, 2, 2]
        evaluation = images_of(ours.backbone, per_class=8, classes=8, seed=2)
        predicted = network(evaluation.batch(torch.arange(64))).argmax(1)
        for label in range(8):
            assert (predicted[evaluation.labels == label] == label).any()


def test_how_frequent_a_class_is_comes_from_all_labels(ours):
    images = uneven_images(ours.backbone, UNEVEN)
    found = fit(network_of(ours, classes=8), ours.backbone, images, 8, generator(), count=24)
    assert found.classes.counts.tolist() == list(UNEVEN)
    assert found.weights.tolist() == [15.0] * 4 + [1.0] * 4


def test_where_all_images_are_looked_at_each_stands_for_itself_in_random_order(ours):
    images = uneven_images(ours.backbone, UNEVEN)
    network = network_of(ours, classes=8)
    found = fit(network, ours.backbone, images, 8, generator(3), count=len(images))
    again = generator(3)
    torch.randperm(len(images), generator=again)  # for batch norm
    assert torch.equal(found.labels, images.labels[torch.randperm(len(images), generator=again)])
    rows, every = found.features.double(), torch.ones(len(images), dtype=torch.bool)
    ones = torch.ones(8, dtype=torch.float64)
    choice = choose_classifier(rows, found.labels, 8, ones, every)
    assert (found.choice.shrinkage, found.choice.scale) == (choice.shrinkage, choice.scale)
    expected = GaussianClasses.of(rows, found.labels, 8).classifier(0.1)
    for one, other in zip(found.classes.classifier(0.1), expected, strict=True):
        assert torch.equal(one, other)


# -- choosing a classifier by cross-validation -----------------------------------------------------


def drawn_rows(count: int, noise: float, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of three classes around 0, 1 and 2 in both directions, and their labels."""
    labels = torch.arange(count) % 3
    spread = noise * torch.randn(count, 2, generator=generator(seed), dtype=torch.float64)
    return spread + labels[:, None], labels


ONES = torch.ones(3, dtype=torch.float64)


def test_each_part_is_classified_by_what_is_fitted_to_the_others():
    """The lowest loss over all shrinkages and scales, worked out part by part."""
    rows, labels = drawn_rows(45, noise=0.5)
    weights = torch.tensor([1.0, 3.0, 1.0], dtype=torch.float64)
    choice = choose_classifier(rows, labels, 3, weights, torch.ones(45, dtype=torch.bool))
    best = math.inf
    for shrinkage in (0.03, 0.1, 0.3, 0.6, 1.0):
        for scale in torch.logspace(-4, 0.5, 46, dtype=torch.float64):
            total = 0.0
            for part in range(5):
                out = torch.zeros(45, dtype=torch.bool)
                out[labels.argsort(stable=True)[part::5]] = True
                found = GaussianClasses.of(rows[~out], labels[~out], 3, weights)
                weight, bias = found.classifier(shrinkage)
                chances = (scale * (rows[out] @ weight.T + bias)).log_softmax(1)
                own = chances[torch.arange(int(out.sum())), labels[out]]
                total -= float((weights[labels[out]] * own).sum())
            best = min(best, total / float(weights[labels].sum()))
    assert choice.loss == pytest.approx(best)


def test_only_the_images_that_are_marked_are_judged():
    """Those of the others that lie in the wrong class make the classifier worse, and count as no loss."""
    rows, labels = drawn_rows(60, noise=0.1)
    judged = torch.arange(60) < 30
    right = choose_classifier(rows, labels, 3, ONES, judged)
    wrong = labels.clone()
    wrong[30:33] = (wrong[30:33] + 1) % 3
    mostly = choose_classifier(rows, wrong, 3, ONES, judged)
    assert right.loss < mostly.loss < choose_classifier(rows, wrong, 3, ONES, ~judged).loss


def test_features_that_a_network_knows_by_heart_do_not_make_it_sure_of_itself():
    """Half of the images lie exactly on their class, as after tuning on them; the others do not."""
    rows, labels = drawn_rows(120, noise=1.0)
    known = torch.arange(120) < 60
    rows[known] = labels[known, None].double()
    honest = choose_classifier(rows, labels, 3, ONES, ~known)
    fooled = choose_classifier(rows, labels, 3, ONES, known)
    assert honest.scale < fooled.scale
    assert fooled.loss < 0.1 < honest.loss


def test_a_few_images_that_are_all_right_ask_for_no_certainty_without_limit():
    """Of nine images the labels are smoothed by an eleventh: what is surer than 31 in 33 costs more."""
    rows, labels = drawn_rows(9, noise=0.3)
    choice = choose_classifier(rows, labels, 3, ONES, torch.ones(9, dtype=torch.bool))
    weight, bias = GaussianClasses.of(rows, labels, 3).classifier(choice.shrinkage)
    logits = rows @ weight.T + bias
    assert (logits.argmax(1) == labels).all()
    assert float((choice.scale * logits).softmax(1).amax(1).mean()) < 0.99
    certain = (SCALES[-1] * logits).softmax(1).amax(1)
    assert float(certain.median()) > 0.999


def test_one_image_a_class_gives_the_nearest_mean_and_a_cautious_probability():
    rows = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]], dtype=torch.float64)
    labels = torch.arange(3)
    choice = choose_classifier(rows, labels, 3, ONES, torch.ones(3, dtype=torch.bool))
    assert choice.shrinkage == 1
    assert math.isnan(choice.loss)
    weight, bias = GaussianClasses.of(rows, labels, 3).classifier(1.0)
    chances = (choice.scale * (rows @ weight.T + bias)).softmax(1)
    assert chances.argmax(1).tolist() == [0, 1, 2]
    assert 0.4 < float(chances.diagonal().mean()) < 0.9


def test_held_out_images_compare_networks_and_are_fitted_to_all_the_same(ours):
    task = task_of(ours.backbone, per_class=30)
    held = held_out(task.train.labels, generator())
    network = network_of(ours)
    found = examine(network, task.train, 3, generator(), 2048, held=held, tuned=True)
    assert int(found.held.sum()) == int(held.sum()) == 12
    assert found.classes.counts.tolist() == [30, 30, 30]
    rows = found.features.double()
    choice = choose_classifier(rows, found.labels, 3, found.weights, found.held)
    assert (found.choice, found.loss) == (choice, choice.loss)
    untuned = examine(network_of(ours), task.train, 3, generator(), 2048, held=held)
    assert untuned.loss == choice.loss  # compared in the same way
    every = torch.ones_like(held)
    assert untuned.choice == choose_classifier(rows, found.labels, 3, found.weights, every)


def test_a_network_whose_features_are_not_finite_is_refused(ours):
    network = network_of(ours)
    with torch.no_grad():
        next(network.parameters()).fill_(math.inf)
    with pytest.raises(Diverged, match="features are not finite"):
        examine(network, task_of(ours.backbone).train, 3, generator(), 2048)


def test_tuning_starts_from_class_means_whatever_was_fitted(ours):
    """Its logits rank classes by the distance of features to the class means."""
    task = task_of(ours.backbone)
    network = network_of(ours)
    found = fit(network, ours.backbone, task.train, 3, generator(), 2048)
    start_from_means(network, ours.backbone, found)
    rows = all_features(network, task.evaluation).double()
    nearest = torch.cdist(rows, found.classes.means).argmin(1)
    logits = network(task.evaluation.batch(torch.arange(len(rows))))
    assert float((logits.argmax(1) == nearest).float().mean()) > 0.97


def test_what_tuning_starts_from_is_as_steep_as_suits_all_classes(ours):
    """However they are sorted: the first 520 of these are of two classes alone."""
    images = uneven_images(ours.backbone, (260, 260, 40, 40))
    network = network_of(ours, classes=4)
    found = fit(network, ours.backbone, images, 4, generator(), len(images))
    start_from_means(network, ours.backbone, found)
    with torch.no_grad():
        logits = network(images.batch(torch.arange(len(images))))
    steeper, same, flatter = (
        float(cross_entropy(logits * factor, images.labels)) for factor in (1.27, 1.0, 1 / 1.27)
    )
    assert same < min(steeper, flatter)


def test_features_are_in_the_order_of_the_images_or_of_the_indices(ours):
    images = images_of(ours.backbone, per_class=3)
    network = network_of(ours)
    everything = all_features(network, images)
    assert everything.shape == (9, 96)
    chosen = all_features(network, images, torch.tensor([4, 0]))
    assert torch.allclose(chosen, everything[[4, 0]], atol=1e-5)


def test_accuracy_is_the_share_classified_right(ours):
    network = network_of(ours)
    with torch.no_grad():
        network.fc.bias.copy_(torch.tensor([0.0, 1.0, 0.0]))
    assert accuracy(network, images_of(ours.backbone, per_class=5)) == pytest.approx(1 / 3)
    images = images_of(ours.backbone, per_class=5)
    some, none = (
        PixelImages(images.pixels[chosen], images.labels[chosen], ours.backbone)
        for chosen in ([1, 4, 7, 0], [])
    )
    assert accuracy(network, some) == 0.75
    assert math.isnan(accuracy(network, none))


@pytest.mark.parametrize(
    ("model", "classifiers"),
    [
        ("deit_tiny_distilled_patch16_224", ("head", "head_dist")),
        ("crossvit_9_240", ("head.0", "head.1")),
        ("resnetv2_18", ("head.fc",)),
    ],
)
def test_models_with_two_classifiers_or_a_convolution_for_one_are_fitted_too(model, classifiers):
    """The first one is fitted on what it is given; the other says nothing, and the answers are right."""
    size = None if model.startswith("crossvit") else 32
    arguments = {"embed_dim": 24, "depth": 2, "num_heads": 3} if model.startswith("deit") else {}
    backbone = Backbone.from_timm(model, image_size=size, num_classes=5, arguments=arguments)
    assert backbone.classifiers == classifiers
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = timm.create_model(model, num_classes=5, **backbone.arguments).state_dict()
    task = task_of(backbone)
    network = SubNetwork.of(backbone, weights, Mask.full(backbone.structure())).network(num_classes=3)
    assert network(torch.randn(2, *backbone.input_size)).shape == (2, 3)
    fit(network, backbone, task.train, 3, generator(), 64)
    assert accuracy(network, task.evaluation) > 0.7  # chance is a third
    for name in classifiers[1:]:
        assert not any(p.any() for p in network.get_submodule(name).parameters())
    first = network.get_submodule(classifiers[0])
    assert all_features(network, task.evaluation).shape[1] == first.weight.shape[1]
