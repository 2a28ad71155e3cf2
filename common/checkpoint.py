"""Checkpoint: the tensors of a file, under the names and in the shapes that a model has for them.

The right weights come in many forms: under the prefix of whatever wrapped the network, in another
precision, for another image size, without a classifier. What has one meaning alone is taken; everything
else is refused with both sides.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from common.errors import InputError, WeightsError
from common.files import read_whole
from common.system_errors import pass_on
from common.tensor_file import read_tensors

if TYPE_CHECKING:
    from common.backbone import Backbone

Tensors = Mapping[str, Tensor]

SHOWN = 3
"""Tensors of a kind that a message names, at most."""
OF_LAYERS = (".weight", ".bias")
"""How tensors of layers are called. A layer has one size; tables of positions go with the image size."""
COUNTS = ".num_batches_tracked"
"""What batch norms count, and never use."""


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file as they are, in memory: later changes of the file do not matter.

    Raises WeightsError naming the file. Pickled checkpoints are refused: they run code.
    """
    if not Path(path).exists():
        raise WeightsError(f"there is no file {path}; give a safetensors checkpoint")
    try:
        return read_tensors(read_whole(path))[0]
    except InputError as error:
        pass_on(error)
        raise WeightsError(
            f"{path} is not a readable safetensors file ({error}); pickled checkpoints are refused, "
            "convert them with safetensors.torch.save_file"
        ) from error


def class_count(tensors: Tensors, classifier: str) -> int | None:
    """How many classes a checkpoint has, by the module of that name; None where it is not there."""
    for prefix in _common_prefixes(tensors):
        weight = tensors.get(f"{prefix}{classifier}.weight")
        if weight is not None and weight.ndim:
            return weight.shape[0]
    return None


def fit(tensors: Tensors, backbone: Backbone, path: Path) -> dict[str, Tensor]:
    """A checkpoint's tensors as the backbone's weights, with its names, shapes and dtypes.

    A prefix of all names is taken off where the rest are the model's names. Tensors that the model
    computes itself are left out. Counts of batches and a classifier are zeros where the file has none.
    Tables of positions for another image size are resampled as timm does. Raises WeightsError, which
    names `path` and the tensors that are missing, unknown, of another shape, quantised or not finite.
    """
    skeleton = backbone.skeleton()
    wanted = skeleton.state_dict()
    prefix = _prefix_to_take_off(tensors, wanted)
    computed = {name for name, _ in skeleton.named_buffers()} - wanted.keys()
    found = {
        name: _in_dtype_of(wanted.get(name), tensor)
        for full_name, tensor in tensors.items()
        if (name := full_name.removeprefix(prefix)) not in computed
    }
    found |= {
        name: torch.zeros(wanted[name].shape, dtype=wanted[name].dtype)
        for name in _dispensable(found, wanted, backbone)
    }
    lacking = [name for name in wanted if name not in found]
    unknown = [name for name in found if name not in wanted]
    resized = _resized(found, wanted)
    wrong_values = [
        f"{name} {fault}"
        for name, tensor in found.items()
        if name in wanted and (fault := _fault(tensor, wanted[name]))
    ]
    whole = not (lacking or unknown or wrong_values)
    if whole and resized and not _of_layers(resized):
        found |= _resampled(found, resized, backbone)
        resized = _resized(found, wanted)
    if whole and not resized:
        return {name: found[name] for name in wanted}

    problems = []
    if lacking:
        problems.append(f"it lacks {_listed(lacking, wanted)}")
    if unknown:
        common = _common_prefixes(unknown)[-1] if len(unknown) == len(tensors) else ""
        told = f" (all its names begin with {common!r})" if common else ""
        problems.append(f"it has {_listed(unknown, found)}, which the model does not{told}")
    shapes = [f"{n} is {tuple(found[n].shape)}, not {tuple(wanted[n].shape)}" for n in resized]
    problems += [_first(SHOWN, kind) for kind in (shapes, wrong_values) if kind]
    advice = _advice(found, wanted, resized, backbone) if whole else ""
    raise WeightsError(
        f"{path} does not fit {backbone.model} with {backbone.num_classes:,} classes"
        + (f", without the {prefix!r} that its names begin with" if prefix else "")
        + f": {'; '.join(problems)}. "
        + (advice or "Give the checkpoint of this model, or name the model of this checkpoint")
    )


def _common_prefixes(names: Iterable[str]) -> list[str]:
    """What all names begin with, in whole words, the shortest first: "", "module.", "module.model."."""
    prefixes = [""]
    for words in zip(*(name.split(".")[:-1] for name in names), strict=False):
        if len(set(words)) > 1:
            break
        prefixes.append(f"{prefixes[-1]}{words[0]}.")
    return prefixes


def _prefix_to_take_off(names: Collection[str], wanted: Collection[str]) -> str:
    """The shortest of their common prefixes without which most of the names are wanted."""

    def known(prefix: str) -> int:
        return sum(name.removeprefix(prefix) in wanted for name in names)

    return max(_common_prefixes(names), key=known)


def _in_dtype_of(wanted: Tensor | None, tensor: Tensor) -> Tensor:
    """The tensor in the dtype that is wanted, unless whole numbers would be taken for weights."""
    if wanted is None or (wanted.is_floating_point() and not tensor.is_floating_point()):
        return tensor
    return tensor.to(wanted.dtype)


def _dispensable(found: Tensors, wanted: Tensors, backbone: Backbone) -> list[str]:
    """What features do not depend on, and is not there: counts, and classifiers if none is there."""
    names = [name for name in wanted if name.endswith(COUNTS)]
    if not found.keys() & set(backbone.classifier_tensors):
        names += [name for name in backbone.classifier_tensors if name in wanted]
    return [name for name in names if name not in found]


def _resized(found: Tensors, wanted: Tensors) -> list[str]:
    return [name for name in wanted if name in found and found[name].shape != wanted[name].shape]


def _of_layers(names: Iterable[str]) -> list[str]:
    return [name for name in names if name.endswith(OF_LAYERS)]


def _fault(tensor: Tensor, wanted: Tensor) -> str:
    """What is wrong with a tensor's values; "" if nothing is."""
    if wanted.is_floating_point() and not tensor.is_floating_point():
        kind = str(tensor.dtype).removeprefix("torch.")
        return f"is of whole numbers ({kind}), which are not the weights without their scales"
    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        return "holds NaN or infinity as float32"
    return ""


def _resampled(found: Tensors, names: Sequence[str], backbone: Backbone) -> Tensors:
    """These tables of positions for the backbone's image size, by timm; empty where timm cannot."""
    default_size = backbone.skeleton().pretrained_cfg["input_size"]  # type: ignore[union-attr, index]
    source: dict[str, Any] = {
        "state_dict": {name: t.double() if name in names else t for name, t in found.items()},
        "num_classes": backbone.num_classes,
        "label_offset": None,
        "input_size": (backbone.input_size[0], *default_size[1:]),
    }
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), _DoubleForFloat():
            warnings.simplefilter("ignore")  # of timm's own code
            network = timm.create_model(
                backbone.model,
                pretrained=True,
                pretrained_cfg_overlay=source,
                num_classes=backbone.num_classes,
                **backbone.arguments,
            )
    except Exception:  # of any kind: timm's loaders are not ours
        return {}
    weights = network.state_dict()
    return {name: weights[name] for name in names}


class _DoubleForFloat(TorchFunctionMode):
    """What is resampled in double precision and then rounded is the same on every kind of processor.

    A library knows its backbone by a digest of the weights, and may be served on another machine.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return args[0].double() if func is Tensor.float else func(*args, **(kwargs or {}))


def _advice(found: Tensors, wanted: Tensors, resized: Sequence[str], backbone: Backbone) -> str:
    """What to do where all names are right and shapes are not; "" if it is another model's checkpoint."""
    theirs, ours = (weights[f"{backbone.classifier}.weight"].shape for weights in (found, wanted))
    others = [name for name in resized if name not in backbone.classifier_tensors]
    if theirs[:1] != ours[:1] and theirs[1:] == ours[1:] and not _of_layers(others):
        return f"Use --num-classes {theirs[0]}, or give a checkpoint of {ours[0]:,} classes"
    if "img_size" in backbone.arguments and (size := _default_size(found, backbone)):
        return f"Use --image-size {size}, or give a checkpoint for {_pixels(backbone)}"
    if not _of_layers(resized):
        return (
            "These go with the image size, and timm cannot resample them: use the --image-size of the "
            f"checkpoint, or give a checkpoint for {_pixels(backbone)}"
        )
    return ""


def _default_size(found: Tensors, backbone: Backbone) -> int | None:
    """The model's own image size, in pixels a side, if that is what the tensors are for."""
    arguments = {name: value for name, value in backbone.arguments.items() if name != "img_size"}
    skeleton: Any = replace(backbone, arguments=arguments).skeleton()
    return None if _resized(found, skeleton.state_dict()) else skeleton.pretrained_cfg["input_size"][-1]


def _pixels(backbone: Backbone) -> str:
    return f"{backbone.input_size[1]} x {backbone.input_size[2]} pixels"


def _listed(names: Sequence[str], tensors: Tensors) -> str:
    return _first(SHOWN, [f"{name} {tuple(tensors[name].shape)}" for name in names], ", ", " and")


def _first(count: int, words: Sequence[str], between: str = "; ", last: str = "; and") -> str:
    more = f"{last} {len(words) - count:,} more" if len(words) > count else ""
    return between.join(words[:count]) + more
