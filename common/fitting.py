"""What a task gives a network without a single gradient: batch-norm statistics and a classifier."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.backbone import Backbone, features
from common.errors import Diverged
from common.finite import is_finite
from common.images import LabelledImages, in_turn

BATCH = 32
"""Images at a time where no gradient is computed, unless less is asked for: as many as tuning takes, so
that fitting needs no more memory; larger ones save no time on CPUs."""
SHRINKAGES = (0.03, 0.1, 0.3, 0.6, 1.0)
"""How far the covariance may be drawn to a multiple of the identity: 1 is the nearest class mean."""
SCALES = torch.logspace(-4, 0.5, 46, dtype=torch.float64)
"""How steep logits may be, relative to what Gaussian classes would have."""
LATEST = 128
"""So many images' statistics normalise while batch norms' statistics are found: however many are in
memory at a time."""
FOLDS = 5
"""Parts of the cross-validation that chooses shrinkage and scale."""


def on_device_of(network: nn.Module, images: Tensor) -> Tensor:
    """Images where the network is, channels last: convolutions on CPUs are up to twice as fast."""
    device = next(network.parameters()).device
    return images.to(device, memory_format=torch.channels_last)


def recalibrate_batch_norm(
    network: nn.Module,
    images: LabelledImages,
    generator: torch.Generator,
    count: int,
    batch: int = BATCH,
) -> None:
    """Set every batch norm's statistics to those of `count` of this task's images in this network.

    Cutting changes what reaches a layer; statistics of the whole backbone no longer fit it. The images
    pass `batch` at a time. The first batch norm's statistics do not depend on `batch`; deeper
    ones' hardly do, as all are normalised alike: see `_Followed`. A network without batch norm, or a
    task of one image, is left as it is.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    followed = [_Followed(norm) for norm in norms if norm.track_running_stats]
    if not followed or len(images) < 2:
        return
    network.eval()
    chosen = torch.randperm(len(images), generator=generator)[:count]
    with ExitStack() as hooks, torch.no_grad():
        for norm in followed:
            hooks.callback(norm.norm.register_forward_pre_hook(norm.follow).remove)
        # Unless all fit at once, some pass before, or the first would be normalised by few others.
        for passing in (chosen[:LATEST], chosen) if len(chosen) > batch else (chosen,):
            for norm in followed:
                norm.begin()
            for indices in passing.split(batch):
                for norm in followed:
                    norm.arriving = len(indices)
                network(on_device_of(network, images.batch(indices)))
        for norm in followed:
            norm.finish()


class _Followed:
    """A batch norm in evaluation mode while images pass: it normalises by the latest that passed.

    By those in memory alone, as in training mode, a single image would be normalised by itself, and all
    that tells images apart would be lost to the layers behind. By all since the first one, the lot of
    those would weigh on every other. So the running statistics follow some `LATEST` images, those in
    memory among them, and are set to the statistics of all when they have passed.
    """

    def __init__(self, norm: Any) -> None:
        self.norm = norm
        self.arriving = 0
        self._seen = 0
        self._nothing = (torch.zeros_like(norm.running_mean), torch.zeros_like(norm.running_var))
        self._of_latest = self._nothing
        self.begin()

    def begin(self) -> None:
        """From now on, images count as all; the latest stay what they are."""
        self._passed = self._values = 0
        self._of_all = self._nothing

    def follow(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Take in what arrives, (B, C, ...), before it is normalised."""
        arrived = inputs[0]
        others = [dimension for dimension in range(arrived.dim()) if dimension != 1]
        mean = arrived.mean(others, keepdim=True)
        # Many times faster than `torch.var_mean` where channels are last on a CPU.
        part = mean.flatten(), (arrived - mean).square_().mean(others)
        self._seen += self.arriving
        self._passed += self.arriving
        self._values += arrived.numel() // arrived.shape[1]
        share = self.arriving / self._passed
        self._of_all = _mixed(self._of_all, part, share)
        share = self.arriving / min(self._seen, max(self.arriving, LATEST))
        self._of_latest = _mixed(self._of_latest, part, share)
        self._set(*self._of_latest)

    def finish(self) -> None:
        """Set the running statistics to those of all values, the variance without bias."""
        if self._passed:
            mean, variance = self._of_all
            self._set(mean, variance * (self._values / max(self._values - 1, 1)))

    def _set(self, mean: Tensor, variance: Tensor) -> None:
        self.norm.running_mean.copy_(mean)
        self.norm.running_var.copy_(variance)


def _mixed(
    one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], share: float
) -> tuple[Tensor, Tensor]:
    """Mean and variance of a mixture of two, of which `share` is of the other."""
    (mean, variance), (other_mean, other_variance) = one, other
    between = share * (1 - share) * (other_mean - mean) ** 2
    return (
        (1 - share) * mean + share * other_mean,
        (1 - share) * variance + share * other_variance + between,
    )


def all_features(
    network: nn.Module, images: LabelledImages, indices: Tensor | None = None, batch: int = BATCH
) -> Tensor:
    """Features (N, D) in evaluation mode of all images in their order, or of those at `indices`."""
    indices = torch.arange(len(images)) if indices is None else indices
    return torch.cat([rows for _, rows in features_by_batch(network, images, indices, batch)]).clone()


def features_by_batch(
    network: nn.Module, images: LabelledImages, indices: Tensor, batch: int = BATCH
) -> Iterator[tuple[Tensor, Tensor]]:
    """Indices (B,) and features (B, D), in evaluation mode: so many images are in memory at a time."""
    network.eval()
    for part in indices.split(batch):
        with torch.inference_mode():
            rows = features(network, on_device_of(network, images.batch(part))).cpu()
        yield part, rows


def accuracy(network: nn.Module, images: LabelledImages, batch: int = BATCH) -> float:
    """The share of images classified right, in [0, 1]; NaN where there are none."""
    network.eval()
    right = 0
    with torch.inference_mode():
        for indices in torch.arange(len(images)).split(batch):
            logits = network(on_device_of(network, images.batch(indices)))
            right += int((logits.argmax(1).cpu() == images.labels[indices]).sum())
    return right / len(images) if len(images) else float("nan")


@dataclass(frozen=True)
class GaussianClasses:
    """Classes as Gaussians of one common covariance: means (K, D), counts (K,), covariance (D, D).

    `counts` are the images that the task has of each class, also where they were not all looked at.
    """

    means: Tensor
    counts: Tensor
    covariance: Tensor

    @classmethod
    def of(
        cls, rows: Tensor, labels: Tensor, classes: int, weights: Tensor | None = None
    ) -> GaussianClasses:
        """The Gaussians of features (N, D), float64, labelled int64 (N,) in [0, K).

        `weights`, float64 (K,), are how many images of the task one of each class stands for; else one.
        """
        counts = torch.bincount(labels, minlength=classes).double()
        means = torch.zeros(classes, rows.shape[1], dtype=rows.dtype)
        means.index_add_(0, labels, rows)
        means /= counts.clamp(min=1)[:, None]
        within = rows - means[labels]
        counts = counts if weights is None else counts * weights
        return cls(means, counts, within.T @ within / len(rows))

    def classifier(self, shrinkage: float) -> tuple[Tensor, Tensor]:
        """Weight (K, D) and bias (K,) of linear discriminant analysis, the covariance shrunk.

        With a shrinkage of 1 that is the nearest class mean, larger classes preferred when in doubt.
        A class without images never wins.
        """
        level = self.covariance.diagonal().mean().clamp(min=1e-12)
        target = level * torch.eye(len(self.covariance), dtype=self.covariance.dtype)
        shrunk = (1 - shrinkage) * self.covariance + shrinkage * target
        center = (self.means * self.counts[:, None]).sum(0) / self.counts.sum()
        weight = torch.linalg.solve(shrunk, (self.means - center).T).T
        prior = torch.log(self.counts / self.counts.sum()).clamp(min=-50)
        return weight, prior - 0.5 * (weight * (self.means + center)).sum(1)


@dataclass(frozen=True)
class Choice:
    """The classifier that cross-validation prefers: how far to shrink, and how steep its logits are.

    `loss` is the lowest mean cross-entropy in the cross-validation, over all shrinkages and scales: what
    the features are worth. NaN where no image could be classified.
    """

    shrinkage: float
    scale: float
    loss: float


@dataclass(frozen=True)
class Fitted:
    """What `examine` found: Gaussian classes, and the classifier that cross-validation prefers for them.

    `features` float32 (N, D), `labels` int64 (N,) and `held` bool (N,) are of the images it looked at, in
    random order and of all classes; `held` marks those that tuning must not see. `weights` float64 (K,)
    are how many images of the task one of each class stands for. `loss` compares one network with
    another: the mean cross-entropy of the images that are held out; NaN where they are too few.
    """

    classes: GaussianClasses
    choice: Choice
    loss: float
    labels: Tensor
    held: Tensor
    weights: Tensor
    features: Tensor

    def assign(self, network: nn.Module, backbone: Backbone) -> None:
        """Set the network's classifier to the one that was found."""
        _assign(network, backbone, self.classes.classifier(self.choice.shrinkage), self.choice.scale)


def fit(
    network: nn.Module,
    backbone: Backbone,
    images: LabelledImages,
    classes: int,
    generator: torch.Generator,
    count: int,
    batch: int = BATCH,
) -> Fitted:
    """Fit batch norm and the classifier to at most `count` images, `batch` at a time; what was found.

    The network must not have been tuned on these images: see `examine`, which does the work.
    """
    found = examine(network, images, classes, generator, count, batch)
    found.assign(network, backbone)
    return found


def examine(
    network: nn.Module,
    images: LabelledImages,
    classes: int,
    generator: torch.Generator,
    count: int,
    batch: int = BATCH,
    *,
    held: Tensor | None = None,
    tuned: bool = False,
) -> Fitted:
    """Fit batch norm to at most `count` images, and find the classifier that suits their features.

    The classifier is linear discriminant analysis on the network's own features, fitted to all images
    looked at. How far its covariance is shrunk and how steep its logits are is chosen by
    cross-validation, so that its probabilities can be believed. A network that was tuned knows its
    training images by heart: with `tuned`, only the images that `held`, bool (images,), marks are
    classified in the cross-validation.

    Where the task has more images than `count`, the same number of every class is looked at, as far as
    there are, and at least two; how frequent a class is comes from all labels. Raises Diverged where
    features are not finite.
    """
    recalibrate_batch_norm(network, images, generator, count, batch)
    order = torch.randperm(len(images), generator=generator)
    apart = torch.zeros(len(images), dtype=torch.bool) if held is None else held
    most = max(count, 2 * classes)
    chosen = order[
        torch.isin(order, in_turn(images.labels, _mixed_order(order, apart, images.labels))[:most])
    ]
    kept = all_features(network, images, chosen, batch)
    if not is_finite(kept):
        raise Diverged(
            "the network's features are not finite; if it was tuned, give a smaller learning rate"
        )
    labels = images.labels[chosen]
    looked_at = torch.bincount(labels, minlength=classes).clamp(min=1)
    weights = torch.bincount(images.labels, minlength=classes).double() / looked_at
    apart = apart[chosen]
    rows = kept.double()
    compared = choose_classifier(rows, labels, classes, weights, apart)
    everything = torch.ones(len(chosen), dtype=torch.bool)
    choice = compared if tuned else choose_classifier(rows, labels, classes, weights, everything)
    # Fewer images than parts say nothing about which network is better.
    loss = compared.loss if int(apart.sum()) >= FOLDS else math.nan
    found = GaussianClasses.of(rows, labels, classes, weights)
    return Fitted(found, choice, loss, labels, apart, weights, kept)


def _mixed_order(order: Tensor, apart: Tensor, labels: Tensor) -> Tensor:
    """An order of images in which each class begins with one to tune on and one that is held out.

    So however few images of a class are looked at, both are among them. The rest stays in its order.
    """
    own, held = order[~apart[order]], order[apart[order]]
    first_own, first_held = (_first_of_each(part, labels) for part in (own, held))
    first = torch.cat([first_own, first_held])
    return torch.cat([first, order[~torch.isin(order, first)]])


def _first_of_each(order: Tensor, labels: Tensor) -> Tensor:
    """The first image of each class, in the order of classes."""
    by_class = order[labels[order].argsort(stable=True)]
    own = labels[by_class]
    begins = torch.ones(len(own), dtype=torch.bool)
    begins[1:] = own[1:] != own[:-1]
    return by_class[begins]


def choose_classifier(
    rows: Tensor, labels: Tensor, classes: int, weights: Tensor, judged: Tensor
) -> Choice:
    """The shrinkage and scale that suit features float64 (N, D) best, by cross-validation.

    The images that `judged`, bool (N,), marks are divided into FOLDS parts, and each part is classified
    by what is fitted to all other images. `weights`, float64 (K,), are how many images of the task one of
    each class stands for. An image whose class has no other image is left out. Where none is left, the
    nearest class mean is taken, with logits that differ by one between the average classes.

    Labels are smoothed by one part in n + 2 of n images, as Platt (1999) does for two classes: without
    that, a few images that are all classified right would ask for a certainty without limit.
    """
    places = torch.nonzero(judged).flatten()
    # By class, so that no part has more of one class than another has.
    places = places[labels[places].argsort(stable=True)]
    logits: dict[float, list[Tensor]] = {shrinkage: [] for shrinkage in SHRINKAGES}
    classified = []
    for part in (places[start::FOLDS] for start in range(min(FOLDS, len(places)))):
        others = torch.ones(len(rows), dtype=torch.bool)
        others[part] = False
        found = GaussianClasses.of(rows[others], labels[others], classes, weights)
        part = part[found.counts[labels[part]] > 0]
        classified.append(labels[part])
        for shrinkage, of_parts in logits.items():
            weight, bias = found.classifier(shrinkage)
            of_parts.append(rows[part] @ weight.T + bias)
    known = torch.cat([*classified, labels[:0]])
    if not len(known):
        return Choice(1.0, _cautious_scale(GaussianClasses.of(rows, labels, classes, weights)), math.nan)
    smoothing = 1 / (len(known) + 2)
    joined = {shrinkage: torch.cat(logits.pop(shrinkage)) for shrinkage in SHRINKAGES}
    smoothed = {one: _best_scale(given, known, weights, smoothing) for one, given in joined.items()}
    shrinkage = min(smoothed, key=lambda one: smoothed[one][0])
    _, scale = smoothed[shrinkage]
    loss = min(_best_scale(given, known, weights)[0] for given in joined.values())
    return Choice(shrinkage, scale, loss)


def _best_scale(
    logits: Tensor, labels: Tensor, weights: Tensor, smoothing: float = 0.0
) -> tuple[float, float]:
    """(cross-entropy, scale) of the scale that suits logits (N, K) best; of equal ones, the smallest.

    The cross-entropy is convex in the scale, so that bisection finds its minimum.
    """

    def loss(index: int) -> float:
        scaled = SCALES[index] * logits
        return float(functional.cross_entropy(scaled, labels, weights, label_smoothing=smoothing))

    low, high = 0, len(SCALES) - 1
    while low < high:
        middle = (low + high) // 2
        if loss(middle) <= loss(middle + 1):
            high = middle
        else:
            low = middle + 1
    return loss(low), float(SCALES[low])


def _cautious_scale(found: GaussianClasses) -> float:
    """How steep logits are if the classes' means, classified, differ by one on average."""
    weight, bias = found.classifier(1.0)
    logits = found.means @ weight.T + bias
    spread = float((logits.diagonal()[:, None] - logits).mean())
    return 1 / max(spread, 1e-12)


def start_from_means(network: nn.Module, backbone: Backbone, fitted: Fitted) -> None:
    """Set the classifier of a network just fitted to the nearest class mean: what tuning starts from.

    A discriminant's weights are large along features of little variance, and the gradients that
    they send back wreck the network in the first few iterations; those of class means do not. Its
    logits are as steep as suits best the images that `fit` looked at, which are of all classes. Images
    that are held out have no part in it.
    """
    own = ~fitted.held
    rows, labels = fitted.features[own].double(), fitted.labels[own]
    found = GaussianClasses.of(rows, labels, len(fitted.weights), fitted.weights)
    weight, bias = found.classifier(1.0)
    _, scale = _best_scale(rows @ weight.T + bias, labels, fitted.weights)
    _assign(network, backbone, (weight, bias), scale)


def _assign(network: nn.Module, backbone: Backbone, linear: tuple[Tensor, Tensor], scale: float) -> None:
    """Set the first classifier; the others, averaged with it, say nothing."""
    classifier: Any = network.get_submodule(backbone.classifier)
    with torch.no_grad():
        for name in backbone.other_classifiers:
            for parameter in network.get_submodule(name).parameters():
                parameter.zero_()
        for parameter, value in zip((classifier.weight, classifier.bias), linear, strict=True):
            parameter.copy_((value * scale).reshape(parameter.shape).to(parameter))
