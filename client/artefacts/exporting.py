"""Exporting: a network becomes an artefact with its card, which says what was measured of it here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from client.artefacts.card import write_artefact
from client.artefacts.executorch_program import program_of
from client.artefacts.facts import all_logits, facts_of, latency_of
from client.artefacts.int8 import quantised
from client.artefacts.kinds import check_calibration, check_suffix
from client.artefacts.runnable import Logits, onnx_logits, onnx_session, open_artefact, version_of
from client.artefacts.torch_network import logits_of
from client.export import OPSET, SavedNetwork, checked_graph
from common.calibration import calibration_of
from common.files import Data
from common.task_data import Task

Told = Callable[[str], object]
"""Told what is being done."""


@dataclass(frozen=True)
class Judges:
    """A task whose evaluation images judge an artefact: `logit_of` is which logit is whose, by class."""

    task: Task
    logit_of: tuple[int, ...]


@dataclass(frozen=True)
class _Made:
    """The bytes of an artefact, what runs them, and what its kind has to say."""

    data: Data
    logits: Logits
    runtime: str
    facts: Mapping[str, Any]
    whole: Logits | None = None
    """The network before it was quantised."""


def export_artefact(
    kind: str, out: Path, saved: SavedNetwork, judges: Judges | None, told: Told
) -> Mapping[str, Any]:
    """Write a network as an artefact of this kind, and its card beside it; give the card.

    With `judges`, the card has the accuracy on their evaluation images, and their training images
    calibrate int8, which needs them. `told` is called with what is being done. InputError for a name
    that its kind has not, a missing package, or a place that cannot be written to; UnsupportedModel
    where the network cannot be written so.
    """
    check_suffix(out, kind)
    check_calibration(kind, images=judges is not None)
    made = MAKING[kind](saved, judges, told)
    facts = {"kind": kind, **facts_of(saved), **made.facts}
    if judges is not None:
        facts["accuracy"] = _accuracy(made, judges, told)
    told("Measuring latency")
    facts["latency"] = latency_of(
        made.logits, saved.backbone.input_size, made.runtime, torch.get_num_threads()
    )
    card = write_artefact(out, made.data, facts)
    open_artefact(out, torch.get_num_threads())
    return card


def _onnx(saved: SavedNetwork, judges: Judges | None, told: Told) -> _Made:
    told("Writing and checking the graph")
    graph = checked_graph(saved)
    facts = {"opset": OPSET, "difference": graph.difference}
    return _Made(graph.data, _run(graph.data), version_of("onnxruntime"), facts)


def _int8(saved: SavedNetwork, judges: Judges | None, told: Told) -> _Made:
    assert judges is not None
    told("Writing and checking the graph")
    graph = checked_graph(saved)
    found = quantised(graph.data, judges.task.train, lambda setting: told(f"Quantising: {setting}"))
    facts = {
        "opset": OPSET,
        "quantisation": {
            "weights": "int8, a scale for each channel" + (", 7 bits" if found.reduced_range else ""),
            "activations": "uint8",
            "setting": found.setting.described,
            "settings_tried": found.tried,
            "calibration_images": found.images,
            "calibration_agreement": found.agreement,
        },
    }
    return _Made(found.data, _run(found.data), version_of("onnxruntime"), facts, _run(graph.data))


def _safetensors(saved: SavedNetwork, judges: Judges | None, told: Told) -> _Made:
    return _Made(saved.to_bytes(), logits_of(saved.network), version_of("torch"), {})


def _executorch(saved: SavedNetwork, judges: Judges | None, told: Told) -> _Made:
    told("Lowering and checking the program")
    program = program_of(saved)
    size = [1, *saved.backbone.input_size]
    facts = {
        "input": {"name": "images", "type": "float32", "shape": size},
        "output": {"name": "logits", "type": "float32", "shape": [1, len(saved.classes)]},
        "difference": program.difference,
    }
    return _Made(program.data, program.logits, version_of("executorch"), facts)


MAKING: Mapping[str, Callable[[SavedNetwork, Judges | None, Told], _Made]] = {
    "onnx": _onnx,
    "onnx-int8": _int8,
    "safetensors": _safetensors,
    "executorch": _executorch,
}
"""The kinds of artefact -> what makes them."""


def _run(graph: bytes) -> Logits:
    return onnx_logits(onnx_session(graph, torch.get_num_threads()))


def _accuracy(made: _Made, judges: Judges, told: Told) -> dict[str, Any]:
    images = judges.task.evaluation
    wanted = np.array(judges.logit_of)[images.labels.numpy()]
    told("Judging")
    logits = all_logits(made.logits, images)
    calibration = calibration_of(logits, wanted)
    accuracy = {
        "images": len(images),
        "share_right": float((logits.argmax(axis=1) == wanted).mean()),
        "mean_confidence": calibration.confidence,
        "expected_calibration_error": calibration.error,
    }
    if made.whole is not None:
        whole = all_logits(made.whole, images)
        accuracy["share_right_float32"] = float((whole.argmax(axis=1) == wanted).mean())
    return accuracy
