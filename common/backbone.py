"""The backbone: a pre-trained timm model that the server holds, described so that anyone rebuilds it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from common.checkpoint import class_count, fit, read_checkpoint
from common.errors import InputError, UnsupportedModel, WeightsError
from common.model_names import timm_name
from common.structure import Kind, Structure
from common.structure.discovery import discover
from common.system_errors import pass_on

LOADING_ARGUMENTS = frozenset(
    {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}
)
"""Arguments of timm.create_model that a description may not carry: it can come from a peer."""

FILLING = frozenset(
    {"normal_", "uniform_", "fill_", "zero_", "clamp_", "mul_", "add_", "erfinv_", "copy_"}
)
"""Operations by which parameters get their first values."""

CLASSES_WHERE_NONE = 1000
"""Classes of the classifier given to models that timm builds without one."""

Weights = Mapping[str, Tensor]
"""A network's parameters and persistent buffers by name, as in its state dict."""


@dataclass(frozen=True)
class Backbone:
    """What a timm model is, without its weights: enough to build its skeleton anywhere.

    `input_size` is (C, H, W); `mean` and `std` (C,) normalise inputs in [0, 1]; `arguments` go to
    `timm.create_model` as they are; `classifier` names the module that maps features to classes.
    Models made for distillation or auxiliary losses have `other_classifiers` too, whose logits they
    average with those of the first.
    """

    model: str
    num_classes: int
    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    classifier: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    timm_version: str = timm.__version__
    other_classifiers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        problems = []
        if len(self.input_size) != 3 or min(self.input_size) < 1:
            problems.append(f"inputs are {self.input_size}; needed: (C, H, W), each at least 1")
        if {len(self.mean), len(self.std)} != {self.input_size[0]} or not min(self.std, default=1) > 0:
            problems.append(f"mean {self.mean} and std {self.std} are not one a channel, std above 0")
        if not timm.is_model(self.model.split(".")[0]):
            problems.append(f"timm {timm.__version__} has no model of that name")
        unsafe = sorted(set(self.arguments) & LOADING_ARGUMENTS)
        if unsafe:
            problems.append(f"the arguments {', '.join(unsafe)} load files or weights")
        if self.num_classes < 1:
            problems.append(f"it has {self.num_classes} classes; at least 1")
        if problems:
            raise InputError(f"{self.model} cannot be a backbone: {'; '.join(problems)}")

    @classmethod
    def from_timm(
        cls,
        model: str,
        *,
        num_classes: int | None = None,
        image_size: int | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> Backbone:
        """The description of a timm model: its defaults, at another image size or class count.

        A model that timm builds without a classifier gets one of 1000 classes, or as many as asked for.
        Raises UnsupportedModel for a name timm does not know (with near ones), for arguments that
        the model refuses, and for models whose classifier is not linear.
        """
        model = timm_name(model)
        arguments = dict(arguments or {})
        if "img_size" in arguments:
            own = arguments.pop("img_size")
            if not isinstance(own, int) or image_size not in (None, own):
                raise UnsupportedModel(
                    f"the argument img_size is {own}, the image size {image_size}; "
                    "give the image size alone"
                )
            image_size = own
        if image_size is not None and image_size < 1:
            raise UnsupportedModel(f"the image size is {image_size} pixels; it is at least 1")
        network: Any = _create(model, num_classes, arguments)
        defaults = network.pretrained_cfg
        channels = arguments.get("in_chans", 3)
        height, width = defaults["input_size"][1:]
        if image_size is not None and (height, width) != (image_size, image_size):
            height = width = image_size
            if defaults.get("fixed_input_size"):
                arguments["img_size"] = image_size
                network = _create(model, num_classes, arguments)
        names = defaults["classifier"] or ()
        names = (names,) if isinstance(names, str) else tuple(names)
        if num_classes is None and names and isinstance(network.get_submodule(names[0]), nn.Identity):
            network = _create(model, CLASSES_WHERE_NONE, arguments)
        classifiers = [network.get_submodule(name) for name in names]
        if not classifiers or not all(_is_linear(module) for module in classifiers):
            raise UnsupportedModel(
                f"{model} has no linear classifier ({', '.join(names) or 'none named'}), which a device "
                "replaces by its own; choose a model with one"
            )
        return cls(
            model=model,
            num_classes=classifiers[0].weight.shape[0],
            input_size=(channels, height, width),
            mean=_per_channel(defaults["mean"], channels),
            std=_per_channel(defaults["std"], channels),
            interpolation=defaults["interpolation"],
            classifier=names[0],
            other_classifiers=names[1:],
            arguments=arguments,
        )

    def skeleton(self, num_classes: int | None = None) -> nn.Module:
        """The network on the meta device: shapes without weights, in evaluation mode."""
        return _create(self.model, num_classes or self.num_classes, dict(self.arguments)).eval()

    def structure(self, kinds: tuple[Kind, ...] = ("internal",)) -> Structure:
        """Its groups of coupled units of the given kinds; the rest is kept whole."""
        found = discover(self.skeleton(), self.input_size, self.classifiers, self.identity)
        return found.only(kinds)

    @property
    def identity(self) -> dict[str, Any]:
        """What its structure depends on."""
        return {
            "timm": self.timm_version,
            "model": self.model,
            "arguments": dict(self.arguments),
            "input_size": list(self.input_size),
        }

    @property
    def classifiers(self) -> tuple[str, ...]:
        """The names of all modules that map features to classes."""
        return (self.classifier, *self.other_classifiers)

    @cached_property
    def classifier_tensors(self) -> tuple[str, ...]:
        """The names of the classifiers' weights and biases, those of the first one first."""
        return tuple(f"{name}.{leaf}" for name in self.classifiers for leaf in ("weight", "bias"))

    def without_classifiers(self, weights: Weights) -> dict[str, Tensor]:
        """The weights that features depend on: these very tensors, but for the classifiers'."""
        return {name: tensor for name, tensor in weights.items() if name not in self.classifier_tensors}

    def to_json(self) -> str:
        """The description as JSON, the same text for the same backbone."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> Backbone:
        """The description in a JSON text; InputError if it is none."""
        try:
            data = json.loads(text)
            for key in ("input_size", "mean", "std", "other_classifiers"):
                if key in data:
                    data[key] = tuple(data[key])
            return cls(**data)
        except InputError:
            raise
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"this does not describe a backbone: {error!r}") from error


def _create(model: str, num_classes: int | None, arguments: Mapping[str, Any]) -> nn.Module:
    classes: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    try:
        with torch.device("meta"), _Unfilled():
            return timm.create_model(model, pretrained=False, **classes, **arguments)
    except Exception as error:  # of any kind: timm's constructors are not ours
        pass_on(error)
        raise UnsupportedModel(
            f"timm refuses {model} with {dict(classes, **arguments)}: {error}; "
            "change the arguments or choose another model"
        ) from error


class _Unfilled(TorchFunctionMode):
    """Meta tensors are not filled with numbers, which takes most of the time: they can hold none."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in FILLING:
            tensor = args[0] if args else (kwargs or {})["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **(kwargs or {}))


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (
        isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)
    )


def _per_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    if len(values) == channels:
        return tuple(float(value) for value in values)
    return (sum(values) / len(values),) * channels


def read_weights(path: Path, backbone: Backbone) -> dict[str, Tensor]:
    """The tensors of a safetensors file as the backbone's weights, float32. Errors as of `fit`."""
    return fit(read_checkpoint(path), backbone, path)


def pretrained_weights(backbone: Backbone) -> dict[str, Tensor]:
    """The weights that timm publishes for the model (this downloads them, or finds them cached).

    Where it publishes a model without a classifier, that is of zeros. WeightsError where they cannot be
    had, and for another number of classes than the published one: timm would draw such a classifier by
    lot, and the digest would be another each time.
    """
    published = _published_classes(backbone)
    if published not in (0, backbone.num_classes):
        raise WeightsError(
            f"timm's weights of {backbone.model} have {published:,} classes, asked are "
            f"{backbone.num_classes:,}; give a checkpoint with {backbone.num_classes:,}, or leave "
            "--num-classes out"
        )
    try:
        network = timm.create_model(
            backbone.model,
            pretrained=True,
            num_classes=backbone.num_classes,
            **backbone.arguments,
        )
    except Exception as error:
        pass_on(error)
        raise WeightsError(
            f"timm's weights of {backbone.model} cannot be had here ({error}); "
            "give a checkpoint file instead"
        ) from error
    weights = dict(network.state_dict())
    if not published:
        blank = [name for name in backbone.classifier_tensors if name in weights]
        weights |= {name: torch.zeros_like(weights[name]) for name in blank}
    return weights


def _published_classes(backbone: Backbone) -> int:
    """How many classes timm says that the weights which it publishes have; 0 is no classifier."""
    network: Any = backbone.skeleton()
    return network.pretrained_cfg["num_classes"]


def classes_of(checkpoint: Path | None, model: str, asked: int | None = None) -> int | None:
    """How many classes a backbone has by its checkpoint, else how many are asked for; None by neither.

    WeightsError where both say something else.
    """
    if checkpoint is None:
        return asked
    try:
        found = class_count(read_checkpoint(checkpoint), Backbone.from_timm(model).classifier)
    except WeightsError:
        return asked  # reading the weights says what is wrong with the file
    if found is not None and asked not in (None, found):
        raise WeightsError(
            f"--num-classes is {asked:,}, and {checkpoint} has {found:,} classes; leave --num-classes "
            f"out, or give a checkpoint of {asked:,} classes"
        )
    return asked if found is None else found


def backbone_weights(backbone: Backbone, checkpoint: Path | None) -> dict[str, Tensor]:
    """The weights in a checkpoint, else those that timm publishes. Errors as of either."""
    return pretrained_weights(backbone) if checkpoint is None else read_weights(checkpoint, backbone)


def weights_digest(weights: Weights) -> str:
    """sha256 over names, shapes, types and bytes of all tensors, whatever their order."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def features(network: nn.Module, images: Tensor) -> Tensor:
    """Features (N, D) of images (N, C, H, W): what the network's (first) classifier is given."""
    timm_network: Any = network
    names = timm_network.pretrained_cfg["classifier"]
    classifier = network.get_submodule(names if isinstance(names, str) else names[0])
    given: list[Tensor] = []
    handle = classifier.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    try:
        network(images)
    finally:
        handle.remove()
    return given[-1].flatten(1)
