"""Healing: what is cut out of the backbone is taught to give the whole backbone's features again.

The server owns the backbone and images that it may use for anything (public images). On those it
trains the backbone's weights so that the sub-networks which devices are assigned give the backbone's
own features. That is done before any device asks, once for all masks: in every iteration another mask
is cut out, and its gradients reach the weights that it shares with the others. With one mask alone,
the same heals one sub-network.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from common.backbone import Backbone, Weights, features
from common.errors import TaskDataError
from common.fitting import all_features, on_device_of
from common.images import LabelledImages, batches
from common.mask import Mask
from common.rebuild import rebuild
from common.selection import Selection
from common.subnetwork import cut
from server.settings import HealingSettings

Watch = Callable[[int, int], None]
"""Called with what is done and what there is to do."""

MIN_SPREAD = 1e-3
"""Features that hardly vary count no more than their mean square times this, as they teach nothing."""


@dataclass(frozen=True)
class PublicImages:
    """Images that the operator may use, and the whole backbone's features of them: float16 (N, D)."""

    images: LabelledImages
    features: Tensor

    @cached_property
    def spread(self) -> Tensor:
        """The standard deviation of each feature, float32 (D,), which is never near nothing."""
        rows = self.features.float()
        return rows.std(dim=0).clamp(min=MIN_SPREAD * float(rows.square().mean().sqrt()))

    def __post_init__(self) -> None:
        count = len(self.images)
        if count < 2 or self.features.ndim != 2 or len(self.features) != count:
            raise TaskDataError(
                f"{count} public images and features {tuple(self.features.shape)}; needed are at "
                "least two images, and a row of features for each"
            )
        if not self.features.isfinite().all():
            raise TaskDataError("features of public images are NaN or infinite; compute them anew")

    @classmethod
    def of(
        cls, backbone: Backbone, weights: Weights, images: LabelledImages, watch: Watch | None = None
    ) -> PublicImages:
        """Images with what the backbone of these weights makes of them."""
        network = rebuild(backbone, {k: v.clone() for k, v in weights.items()})
        parts = []
        for indices in torch.arange(len(images)).split(256):
            limit = torch.finfo(torch.float16).max
            parts.append(all_features(network, images, indices).clamp(-limit, limit).half())
            if watch is not None:
                watch(int(indices[-1]) + 1, len(images))
        return cls(images, torch.cat(parts) if parts else torch.empty(0, 0))

    def nearest(self, means: np.ndarray, center: np.ndarray, count: int) -> Tensor:
        """Indices, int64 (count,), of the images whose centred features are nearest to one of these.

        `means` are (K, D) features of the backbone; every row brings equally many of the images, the
        nearest by cosine first. Fewer than `count` images: all of them.
        """
        rows = self.features.float() - torch.from_numpy(center)
        wanted = torch.from_numpy(means.astype(np.float32)) - torch.from_numpy(center)
        cosines = nn.functional.normalize(rows) @ nn.functional.normalize(wanted).T
        order = cosines.argsort(dim=0, descending=True).flatten()
        # Row-major: the nearest to each class first, then the second nearest, and so on.
        seen: dict[int, None] = dict.fromkeys(order[: 2 * count * len(means)].tolist())
        return torch.tensor(list(seen)[:count])


def heal(
    backbone: Backbone,
    weights: Weights,
    masks: Iterator[Mask],
    public: PublicImages,
    settings: HealingSettings,
    generator: torch.Generator,
    *,
    within: Mask | None = None,
    indices: Tensor | None = None,
    watch: Watch | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Tensor]:
    """Weights that have learned to give the backbone's features through any of these masks.

    In every iteration the next of `masks` is cut out of the weights, and the squared distance between
    its features and the backbone's (each in units of its standard deviation over the public images) is
    lowered by one step. `within` is the mask that `weights` have been cut with before: for one mask
    alone that is the mask itself. `indices` are the public images to use (default: all). Buffers and
    the classifier stay as they are. Ends early after `settings.seconds`, or once `stop` says so; the
    result is of the same names, shapes and device as `weights`, which are left as they are.
    """
    healed = {name: tensor.detach().clone() for name, tensor in weights.items()}
    names = _trained(backbone, healed)
    for name in names:
        healed[name].requires_grad_(True)
    learners = _Learners(backbone, healed)
    optimiser = torch.optim.SGD(
        [healed[name] for name in names],
        lr=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.momentum > 0,
    )
    chosen = torch.arange(len(public.images)) if indices is None else indices
    stream = batches(len(chosen), settings.batch_size, generator)
    began = time.monotonic()
    for iteration in range(settings.iterations):
        spent = (time.monotonic() - began) / settings.seconds
        if spent >= 1 or stop():
            break
        for parameters in optimiser.param_groups:
            parameters["lr"] = settings.rate(max(spent, iteration / settings.iterations))
        batch = chosen[next(stream)]
        mask = next(masks)
        loss = learners.distance(mask, within, public, batch)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_([healed[name] for name in names], settings.clip_norm)
        optimiser.step()
        if watch is not None:
            watch(iteration + 1, settings.iterations)
    return {name: tensor.detach() for name, tensor in healed.items()}


def _trained(backbone: Backbone, weights: Weights) -> list[str]:
    """The parameters among the tensors, but for the classifiers': features do not depend on those."""
    own = {name for name, _ in backbone.skeleton().named_parameters()}
    return [n for n in weights if n in own and n not in backbone.classifier_tensors]


class _Learners:
    """Networks of the shapes that masks leave, which compute with the weights that are healed.

    One network for every numbers of units per group: masks of one size share it.
    """

    def __init__(self, backbone: Backbone, weights: Weights) -> None:
        self._backbone = backbone
        self._weights = weights
        self._networks: dict[Sequence[int], _Features] = {}

    def distance(self, mask: Mask, within: Mask | None, public: PublicImages, batch: Tensor) -> Tensor:
        """Of the features through a mask from the backbone's: squared, in standard deviations, mean.

        Where features are units themselves, it is of those that are kept.
        """
        given = self._features(mask, within, public.images.batch(batch))
        kept = self._kept_features(mask, public.features.shape[1])
        wanted, spread = public.features[batch][:, kept], public.spread[kept]
        return ((given - wanted.to(given)) / spread.to(given)).square().mean()

    def _kept_features(self, mask: Mask, width: int) -> Tensor:
        """Indices of the backbone's features that a mask leaves."""
        return Selection(mask).of(self._backbone.classifier_tensors[0], torch.arange(width)[None])[0]

    def _features(self, mask: Mask, within: Mask | None, images: Tensor) -> Tensor:
        selection = Selection(mask, within)
        left = {name: selection.of(name, tensor) for name, tensor in self._weights.items()}
        network = self._networks.get(mask.counts)
        if network is None:
            tensors = {name: tensor.detach().clone() for name, tensor in left.items()}
            network = _Features(rebuild(self._backbone, tensors, num_classes=1, mask=mask)).train()
            network = network.to(memory_format=torch.channels_last)
            self._networks[mask.counts] = network
        parameters = {f"network.{name}": tensor for name, tensor in left.items()}
        return functional_call(network, parameters, (on_device_of(network, images),))


class _Features(nn.Module):
    """A network that ends before its classifier."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return features(self.network, images)


def distance(
    backbone: Backbone,
    weights: Weights,
    mask: Mask,
    public: PublicImages,
    *,
    within: Mask | None = None,
) -> float:
    """How far the features that a mask leaves of some weights are from the backbone's own.

    The mean square of their difference over (at most 256 of) the images, each feature in units of its
    standard deviation: 0 is no difference, and about 1 is what the mean feature would give. Batch norms
    take the images' own statistics, as they do on a device. `within` as of `heal`.
    """
    learners = _Learners(backbone, {name: tensor.detach() for name, tensor in weights.items()})
    with torch.no_grad():
        some = torch.linspace(0, len(public.images) - 1, min(256, len(public.images))).long()
        # About equal, as batch norms refuse a last one of a single image.
        equal = some.tensor_split(math.ceil(len(some) / 64))
        parts = [learners.distance(mask, within, public, batch) for batch in equal]
    return float(torch.stack(parts).mean())


def heal_mask(
    backbone: Backbone,
    weights: Weights,
    mask: Mask,
    public: PublicImages,
    settings: HealingSettings,
    generator: torch.Generator,
    *,
    indices: Tensor | None = None,
    watch: Watch | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Tensor]:
    """The tensors that a mask leaves of the weights, healed for this mask alone; see `heal`."""
    left = cut(backbone.without_classifiers(weights), mask)
    same = iter(lambda: mask, None)
    return heal(
        backbone, left, same, public, settings, generator,
        within=mask, indices=indices, watch=watch, stop=stop,
    )  # fmt: skip
