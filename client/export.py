"""Export: the adapted network as a file that other programs read.

safetensors    every tensor of the network by name; with the header it is a timm network again
ONNX           the network as a graph that onnxruntime and others run, without torch

Both carry the backbone's description and the class names, in the order of the logits. Both take images
as the network itself does, normalised: RGB or grey pixels p in 0..255, (p / 255 - mean) / std.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from client.artefacts.kinds import TOLERANCE
from client.artefacts.runnable import import_for, onnx_logits, onnx_session
from client.saved_header import check_header, classes_in, naming
from common.backbone import Backbone
from common.class_names import check_class_names, composed
from common.errors import InputError, UnsupportedModel, WeightsError
from common.files import Data, read_whole, write_whole
from common.rebuild import rebuild
from common.system_errors import pass_on
from common.tensor_file import read_tensors, write_tensors

OPSET = 18
"""The ONNX operators that torch's exporter writes by itself; runtimes since 2023 know them."""
CHECKED_BATCHES = (1, 3)
"""Images at a time when the two are compared: neither is the number that the graph is traced with."""
LARGEST_BYTES = 2**31 - 1
"""Of a file in protobuf, which is what ONNX is."""
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")

IMAGES = (
    "float32 (N, C, H, W), normalised: upright, resized until H x W is filled, cropped to the centre, "
    "(pixel / 255 - mean) / std for each channel, RGB or grey"
)


@dataclass(frozen=True)
class SavedNetwork:
    """A task's own network in evaluation mode, what it was cut from, and its classes as its logits go.

    Names of classes are in NFC. `mask` is the digest of the mask that cut it, empty where that is not
    known.

    Raises TaskDataError for class names that a file cannot hold: empty, of several lines, no text,
    or twice the same.
    """

    network: nn.Module
    backbone: Backbone
    classes: tuple[str, ...]
    mask: str = ""

    def __post_init__(self) -> None:
        check_class_names(self.classes)
        object.__setattr__(self, "classes", tuple(map(composed, self.classes)))

    @property
    def header(self) -> dict[str, str]:
        """What both formats say of the network, beside its tensors."""
        words = {"backbone": self.backbone.to_json(), "classes": "\n".join(self.classes)}
        return {**words, "mask": self.mask} if self.mask else words

    def to_bytes(self) -> Data:
        """The network as a safetensors file."""
        return write_tensors(self.network.state_dict(), self.header)


def save_network(
    path: Path, network: nn.Module, backbone: Backbone, classes: Sequence[str], mask: str = ""
) -> None:
    """Write a network as safetensors, with its backbone's description and class names in the header.

    There the digest of its `mask` stands too, if it is given.

    `load_network` makes the network of it again. TaskDataError for class names as of SavedNetwork,
    InputError where it cannot be written; the file is there whole or not at all.
    """
    write_whole(path, SavedNetwork(network, backbone, tuple(classes), mask).to_bytes())


def load_network(path: Path) -> SavedNetwork:
    """The network in a file of `save_network`, float32. It has classified one image, so that it runs.

    InputError where the file cannot be read; WeightsError naming it where it is damaged, or holds
    no network of a task: other tensors, values that are not finite, no class names or too many.
    """
    data = read_whole(path)
    with naming(path):
        return decode_network(data)


def decode_network(data: Data) -> SavedNetwork:
    """The network in the bytes of such a file; errors as of `load_network`, which names the file."""
    tensors, header = read_tensors(data)
    check_header(header)
    backbone = Backbone.from_json(header["backbone"])
    if backbone.classifier_tensors[0] not in tensors:
        raise WeightsError(f"it has no classifier {backbone.classifier_tensors[0]}")
    strange = [n for n, t in tensors.items() if t.is_floating_point() and not torch.isfinite(t).all()]
    if strange:
        raise WeightsError(f"{', '.join(strange[:3])} holds NaN or infinity")
    weights = {n: t.float() if t.is_floating_point() else t for n, t in tensors.items()}
    try:
        network = rebuild(backbone, weights)
        with torch.no_grad():
            logits = network(torch.zeros(1, *backbone.input_size)).shape[1]
    except InputError:
        raise
    except Exception as error:  # of any kind: timm's networks are not ours
        pass_on(error)
        raise WeightsError(f"its tensors do not fit each other: {first_line(error)}") from error
    classes = classes_in(header)
    if logits != len(classes):
        raise WeightsError(f"it tells {logits} classes apart, and names {len(classes)}")
    return SavedNetwork(network, backbone, classes, header.get("mask", ""))


@dataclass(frozen=True)
class CheckedGraph:
    """The bytes of an ONNX file.

    `difference` is how far its logits are from torch's at worst, as a share of torch's largest.
    """

    data: bytes
    difference: float


def checked_graph(saved: SavedNetwork) -> CheckedGraph:
    """The network as an ONNX file for which onnxruntime gives the logits that torch gives.

    Its input is `images`, float32 (N, C, H, W) of any N, normalised like those of the network; its
    output `logits`, float32 (N, K). Its metadata say so, with `backbone` and `classes` as in the
    safetensors header, `mean`, `std` and `interpolation`. Random images are classified by both, in
    batches of CHECKED_BATCHES, and must agree to TOLERANCE.

    InputError where a package is missing or the network is too large for one file; UnsupportedModel
    where the exporter fails or the logits differ.
    """
    for package in ONNX_PACKAGES:
        import_for(package, "an ONNX file is made and checked", "maskvote[onnx]")
    tensors = saved.network.state_dict().values()
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if size > LARGEST_BYTES:
        raise InputError(
            f"the network has {size:,} bytes of weights, an ONNX file at most {LARGEST_BYTES:,}; "
            "export it as safetensors"
        )
    try:
        with quiet():
            data = _graph_of_any_python(saved)
            difference = _difference(data, saved)
    except Exception as error:  # of any kind: the exporter is not ours
        pass_on(error)
        raise UnsupportedModel(
            f"{saved.backbone.model} cannot be written as ONNX by torch {torch.__version__}: "
            f"{first_line(error)}; export it as safetensors"
        ) from error
    if not difference <= TOLERANCE:
        raise UnsupportedModel(
            f"onnxruntime's logits of {saved.backbone.model} differ from torch's by {difference:.1e} of "
            f"the largest, {TOLERANCE:.0e} is allowed; nothing was written, export it as safetensors"
        )
    return CheckedGraph(data, difference)


def _graph_of_any_python(saved: SavedNetwork) -> bytes:
    """The graph, made once more where Python's own parser fails by chance.

    CPython before 3.11.8 and 3.12.2 may miscount its recursion while it builds a syntax tree, which the
    exporter asks for (python/cpython issue 106905).
    """
    try:
        return _graph(saved)
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, SystemError):
            cause = cause.__cause__ or cause.__context__
        if cause is None or "recursion depth mismatch" not in str(cause):
            raise
    return _graph(saved)


def _graph(saved: SavedNetwork) -> bytes:
    """The network as an ONNX file's bytes, without a word on the machine that made it."""
    import onnx

    with _attention_written_out(saved.network):
        program: Any = torch.onnx.export(
            saved.network,
            (torch.zeros(2, *saved.backbone.input_size),),
            dynamo=True,
            dynamic_shapes=({0: "N"},),
            input_names=["images"],
            output_names=["logits"],
            opset_version=OPSET,
            optimize=True,
            verbose=False,
        )
    model = program.model_proto
    graph = model.graph
    # The exporter notes of every node on which line of which file it was computed.
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    backbone = saved.backbone
    onnx.helper.set_model_props(
        model,
        {
            **saved.header,
            "images": IMAGES,
            "mean": json.dumps(backbone.mean),
            "std": json.dumps(backbone.std),
            "interpolation": backbone.interpolation,
        },
    )
    return model.SerializeToString()


def _difference(data: bytes, saved: SavedNetwork) -> float:
    """How far onnxruntime's logits are from torch's at worst, as a share of torch's largest."""
    import onnx

    onnx.checker.check_model(data, full_check=True)
    logits = onnx_logits(onnx_session(data, torch.get_num_threads()))
    generator = torch.Generator().manual_seed(0)
    shares = []
    for count in CHECKED_BATCHES:
        images = torch.randn(count, *saved.backbone.input_size, generator=generator)
        with torch.no_grad():
            expected = saved.network(images)
        given = torch.from_numpy(logits(images.numpy()))
        if given.shape != expected.shape:
            raise ValueError(f"logits are {tuple(given.shape)}, not {tuple(expected.shape)}")
        # A classifier that is yet to be fitted gives zeros.
        largest = expected.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
        shares.append((given - expected).abs().max() / largest)
    return float(torch.stack(shares).max())


@contextmanager
def _attention_written_out(network: nn.Module) -> Iterator[None]:
    """timm's attention as two products and a softmax: fused, the exporter knows it in 4 dimensions only.

    Twins, Hiera and others have 5, one for the windows.
    """
    fused = [module for module in network.modules() if getattr(module, "fused_attn", False) is True]
    try:
        for module in fused:
            module.fused_attn = False  # type: ignore[assignment]
        yield
    finally:
        for module in fused:
            module.fused_attn = True  # type: ignore[assignment]


@contextmanager
def quiet() -> Iterator[None]:
    """What the exporter tells of its own steps, and whole graphs where it fails, is of no use here."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def first_line(error: BaseException) -> str:
    """What an error began with, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]
