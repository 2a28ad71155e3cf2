"""Networks small enough to know by hand, real ones on random weights, and images to train them on."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from common.backbone import Backbone, Weights
from common.images import PixelImages
from common.mask import Mask
from common.structure import Group, Member, Structure
from common.structure.cost import Cost
from common.structure.discovery import discover
from common.task_data import Task

INPUT = (3, 2, 2)


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(12, 7)
        self.fc2 = nn.Linear(7, 5, bias=False)
        self.fc = nn.Linear(5, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(functional.gelu(self.fc2(self.fc1(images.flatten(1)).relu())))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1, bias=False)
        self.conv1 = nn.Conv2d(4, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 4, 1)
        self.fc = nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        stream = self.stem(images)
        stream = stream + self.conv2(self.bn1(self.conv1(stream)).relu())
        return self.fc(stream.mean((2, 3)))


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 4, 1)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.fc = nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.depthwise(self.expand(images)).relu().mean((2, 3)))


class Concat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 2, 1, bias=False)
        self.right = nn.Conv2d(3, 3, 1, bias=False)
        self.join = nn.Conv2d(5, 4, 1, bias=False)
        self.fc = nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        both = torch.cat([self.left(images), self.right(images)], 1)
        return self.fc(self.join(both).relu().mean((2, 3)))


class Attention(nn.Module):
    """Two heads of width 3, with keys, queries and values in one projection; four tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(3, 18)
        self.proj = nn.Linear(6, 4)
        self.norm = nn.LayerNorm(4)
        self.fc = nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        tokens = images.flatten(2).transpose(1, 2)
        count, length, _ = tokens.shape
        qkv = self.qkv(tokens).reshape(count, length, 3, -1, 3).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(*qkv.unbind(0))
        mixed = mixed.transpose(1, 2).reshape(count, length, -1)
        return self.fc(self.norm(self.proj(mixed)).mean(1))


class Gated(nn.Module):
    """A gated MLP: two halves of one projection, multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(12, 8)
        self.fc2 = nn.Linear(4, 3)
        self.fc = nn.Linear(3, 2)

    def forward(self, images: Tensor) -> Tensor:
        value, gate = self.fc1(images.flatten(1)).chunk(2, -1)
        return self.fc(self.fc2(value * gate.sigmoid()).relu())


class Uneven(nn.Module):
    """Five channels in chunks of three and two: how many come in a chunk follows from the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(12, 5)
        self.fc2 = nn.Linear(5, 4)
        self.fc = nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        left, right = self.fc1(images.flatten(1)).chunk(2, -1)
        return self.fc(self.fc2(torch.cat([right, left], -1)).relu())


class Standardised(nn.Module):
    """A convolution whose weight is normalised over what it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1, bias=False)
        self.conv = nn.Conv2d(4, 5, 1, bias=False)
        self.gain = nn.Parameter(torch.ones(5, 1, 1, 1))
        self.fc = nn.Linear(5, 2)

    def forward(self, images: Tensor) -> Tensor:
        weight = self.conv.weight
        flat = weight.reshape(1, weight.shape[0], -1)
        scaled = functional.batch_norm(flat, None, None, self.gain.view(-1), training=True)
        stream = functional.conv2d(self.stem(images).relu(), scaled.reshape_as(weight))
        return self.fc(stream.relu().mean((2, 3)))


class Tied(nn.Module):
    """One hidden layer under two names, used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 12))
        self.second = self.first
        self.fc = nn.Linear(12, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.second(self.first(images.flatten(1))))


class Branches(nn.Module):
    """Two convolutions of one input, added: no residual stream, as nothing skips anything."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 4, 1, bias=False)
        self.right = nn.Conv2d(3, 4, 1, bias=False)
        self.fc = nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc((self.left(images) + self.right(images)).relu().mean((2, 3)))


class Lonely(nn.Module):
    """Its hidden units are multiplied with each other, so that all are one."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(12, 3)
        self.fc2 = nn.Linear(3, 4)
        self.fc = nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.fc1(images.flatten(1))
        similar = hidden[:, None, :] @ hidden[:, :, None]
        return self.fc(self.fc2(hidden * similar[:, 0]).relu())


class Relative(nn.Module):
    """Two heads of width 3, each with a bias that it reads off a table shared by both; four tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(3, 18)
        self.table = nn.Parameter(torch.zeros(4, 4, 3))
        self.proj = nn.Linear(6, 4)
        self.fc = nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        tokens = images.flatten(2).transpose(1, 2)
        count, length, _ = tokens.shape
        qkv = self.qkv(tokens).reshape(count, length, 3, -1, 3).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        bias = torch.einsum("bhic,ijc->bhij", query, self.table)
        mixed = (query @ key.transpose(-2, -1) + bias).softmax(-1) @ value
        return self.fc(self.proj(mixed.transpose(1, 2).reshape(count, length, -1)).relu().mean(1))


class Sorted(nn.Module):
    """What runs along a dimension in an order has no rule: cumprod freezes the hidden units."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(12, 7)
        self.fc2 = nn.Linear(7, 4)
        self.fc = nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.fc2(self.fc1(images.flatten(1)).cumprod(1)).relu())


@cache
def found_in(network: type[nn.Module]) -> Structure:
    """The structure of a toy whose classifier is `fc`."""
    with torch.device("meta"):
        toy = network()
    return discover(toy, INPUT, ["fc"], {"toy": network.__name__})


def structure_of(sizes: Sequence[int]) -> Structure:
    """A structure with groups g0, g1, ... of so many units, each cutting one tensor's rows."""
    groups = tuple(
        Group(f"g{k}", n, "internal", True, (Member(f"t{k}", 0, np.arange(n, dtype=np.int32), False),))
        for k, n in enumerate(sizes)
    )
    return Structure({"toy": "rows"}, groups, 2, Cost((), ()), Cost((), ()), Cost((), ()))


@dataclass(frozen=True)
class Example:
    """A timm model: all its groups, and random weights under which every part matters."""

    backbone: Backbone
    structure: Structure
    weights: Weights


@cache
def example(model: str, image_size: int | None = None, num_classes: int = 4) -> Example:
    """One of timm's models, the same for the whole session."""
    backbone = Backbone.from_timm(model, num_classes=num_classes, image_size=image_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = timm.create_model(model, num_classes=num_classes, **backbone.arguments)
        for module in network.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)  # timm's start leaves attention uniform
        weights = dict(network.state_dict())
        for name, tensor in weights.items():
            if tensor.ndim == 1:
                noise = torch.rand_like(tensor)
                weights[name] = noise + 0.5 if name.endswith("running_var") else tensor + 0.5 * noise
    return Example(backbone, backbone.structure(("internal", "residual")), weights)


def random_mask(structure: Structure, keep: float, seed: int = 0, kinds: Sequence[str] = ()) -> Mask:
    """About that share of every group, at least one unit; groups of other `kinds` whole."""
    generator = np.random.default_rng(seed)
    rows = {}
    for group in structure.groups:
        row = generator.random(group.units) < keep
        row[generator.integers(group.units)] = True
        rows[group.name] = row if not kinds or group.kind in kinds else np.ones_like(row)
    return Mask.of(structure, rows)


def images_of(
    backbone: Backbone, per_class: int, classes: int = 3, seed: int = 0, noise: float = 30
) -> PixelImages:
    """Noise around one random picture per class, the same pictures for every seed."""
    pictures = np.random.default_rng(99).integers(40, 216, (classes, *backbone.input_size))
    generator = np.random.default_rng(seed)
    labels = np.tile(np.arange(classes), per_class)
    added = generator.normal(0, noise, (len(labels), *backbone.input_size))
    pixels = np.clip(pictures[labels] + added, 0, 255).astype(np.uint8)
    return PixelImages(torch.from_numpy(pixels), torch.from_numpy(labels), backbone)


def task_of(backbone: Backbone, per_class: int = 12, classes: int = 3) -> Task:
    """A task that can be learned in a few iterations."""
    names = tuple(f"class {k}" for k in range(classes))
    return Task(
        names,
        images_of(backbone, per_class, classes, seed=1),
        images_of(backbone, per_class, classes, seed=2),
    )


def outputs(network: nn.Module, backbone: Backbone, count: int = 2) -> Any:
    """What a network gives for some fixed random images."""
    images = torch.randn(count, *backbone.input_size, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        return network.eval()(images)
