"""int8: post-training quantisation of an ONNX file, calibrated on the device's own training images.

Weights are int8, one scale a channel, activations uint8: what onnxruntime's kernels are fastest at. Which
setting suits a network is decided on training images alone, so that the evaluation images still judge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from client.artefacts.runnable import import_for, onnx_logits, onnx_session
from client.export import quiet
from client.processor import counts_in_32_bits
from common.errors import UnsupportedModel
from common.images import LabelledImages, in_turn
from common.system_errors import pass_on
from common.temporary_files import check_room, temporary_directory

CALIBRATION_IMAGES = 256
"""At most so many training images, of all classes alike, tell the ranges of activations."""
CALIBRATION_BATCH = 8
HISTOGRAM_BATCHES = 12
"""So many suffice for methods that count how often every value is, which takes long."""
TEMPORARY_FILES = 4
"""Files of the network's size that onnxruntime writes at once, at most."""
LARGEST_DISAGREEMENT = 0.01
"""Share of training images that int8 may take for another class than float32 does, before other settings
are tried: it cannot lose more than this there."""
PRODUCTS = ("Conv", "MatMul", "Gemm")
"""Layers with weights: all that is quantised of a transformer, whose sums are too unlike each other."""
CONVOLUTIONAL = (*PRODUCTS, "Add", "Mul", "Relu", "AveragePool", "GlobalAveragePool", "ReduceMean")
"""What is quantised of other networks, so that images stay int8 from one convolution to the next."""


@dataclass(frozen=True)
class Setting:
    """How activations' ranges are found, and whether the first layer and the last stay float32."""

    method: str
    float_ends: bool = False

    @property
    def described(self) -> str:
        """What is told of it."""
        return f"{self.method}{', first and last layer in float32' if self.float_ends else ''}"


SETTINGS = (
    Setting("MinMax"),
    Setting("Percentile"),
    Setting("Entropy"),
    Setting("MinMax", float_ends=True),
    Setting("Percentile", float_ends=True),
)
"""The better known settings, in the order in which they are tried."""


@dataclass(frozen=True)
class Quantised:
    """An int8 ONNX file: the setting that was taken, and how it was found.

    `agreement` is the share of `images` training images that it takes for the same class as float32
    does; `reduced_range` is whether weights have 7 bits, since this processor adds up in 16, and so may
    the one where another program than ours runs the file.
    """

    data: bytes
    setting: Setting
    agreement: float
    images: int
    tried: int
    reduced_range: bool


def quantised(graph: bytes, images: LabelledImages, done: Callable[[str], object]) -> Quantised:
    """The int8 form of an ONNX file, calibrated on these training images.

    The first setting with which it agrees with float32 on nearly all of them is taken, else the one
    that agrees most. `done` is told what is tried. InputError where a package is missing or the temporary
    directory is full, UnsupportedModel where onnxruntime cannot quantise the network.
    """
    import_for("onnx", "an int8 file is made", "maskvote[onnx]")
    check_room(*TEMPORARY_FILES * [len(graph)])
    drawn = drawn_images(images.labels, CALIBRATION_IMAGES)
    batches = [images.batch(part).numpy() for part in drawn.split(CALIBRATION_BATCH)]
    expected = _largest(graph, batches)
    best: Quantised | None = None
    for tried, setting in enumerate(SETTINGS, start=1):
        done(setting.described)
        try:
            with quiet():
                data = _quantise(graph, batches, setting)
                agreement = float((_largest(data, batches) == expected).mean())
        except Exception as error:  # of any kind: onnxruntime's are not ours
            pass_on(error)
            # onnxruntime leaves half a file where there is no room for the whole, and later misreads it.
            check_room(*TEMPORARY_FILES * [len(graph)])
            if best is None:
                raise UnsupportedModel(
                    f"onnxruntime cannot quantise this network ({' '.join(str(error).split())[:300]}); "
                    "export it as onnx"
                ) from error
            continue
        if best is None or agreement > best.agreement:
            best = Quantised(data, setting, agreement, len(drawn), tried, not counts_in_32_bits())
        if agreement >= 1 - LARGEST_DISAGREEMENT:
            break
    assert best is not None
    return replace(best, tried=tried)


def drawn_images(labels: Tensor, most: int) -> Tensor:
    """Indices, int64 (N,), of at most so many images: in turn one of every class, each time the same."""
    return in_turn(labels, torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)))[:most]


def _largest(graph: bytes, batches: list[np.ndarray]) -> np.ndarray:
    logits = onnx_logits(onnx_session(graph, torch.get_num_threads()))
    return np.concatenate([logits(batch).argmax(axis=1) for batch in batches])


def _quantise(graph: bytes, batches: list[np.ndarray], setting: Setting) -> bytes:
    import onnx
    from onnxruntime.quantization import (
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quant_pre_process,
        quantize_static,
    )

    with temporary_directory() as directory:
        whole, prepared, result = (Path(directory, name) for name in ("whole", "prepared", "result"))
        whole.write_bytes(graph)
        quant_pre_process(whole, prepared, skip_symbolic_shape=True)
        model = onnx.load(prepared)
        attends = any(node.op_type == "Softmax" for node in model.graph.node)
        quantize_static(
            prepared,
            result,
            _reader(batches if setting.method == "MinMax" else batches[:HISTOGRAM_BATCHES]),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(PRODUCTS if attends else CONVOLUTIONAL),
            per_channel=True,
            reduce_range=not counts_in_32_bits(),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=_ends(model) if setting.float_ends else None,
            calibrate_method=CalibrationMethod[setting.method],
            extra_options={
                # One batch at a time: else every activation of every image is in memory at once.
                "CalibStridedMinMax": 1,
                # Products of activations, as in attention, are no faster in int8.
                "MatMulConstBOnly": True,
            },
        )
        final = onnx.load(result)
    del final.metadata_props[:]
    onnx.helper.set_model_props(
        final, {p.key: p.value for p in onnx.load_from_string(graph).metadata_props}
    )
    return final.SerializeToString()


def _ends(model: Any) -> list[str]:
    """The names of the first and the last layer."""
    layers = [node.name for node in model.graph.node if node.op_type in ("Conv", "MatMul", "Gemm")]
    return [layers[0], layers[-1]]


def _reader(batches: list[np.ndarray]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Batches(CalibrationDataReader):
        """Batches, of which some are read at a time."""

        def __init__(self) -> None:
            self._next: Iterator[np.ndarray] = iter(batches)

        def __len__(self) -> int:
            return len(batches)

        def set_range(self, start_index: int, end_index: int) -> None:
            self._next = iter(batches[start_index:end_index])

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self._next, None)
            return None if batch is None else {"images": batch}

    return Batches()
