"""Runnable: an artefact that classifies images here. Its own runtime is imported, and no other."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from client.artefacts.card import Card, card_path, digest_of, read_card
from client.artefacts.kinds import suffix_of
from client.artefacts.transform import Transform
from client.processor import counts_in_32_bits
from common.class_names import composed
from common.errors import InputError, WeightsError
from common.files import read_whole
from common.system_errors import pass_on

GIVE = "give what `maskvote-client export` wrote"
PRECISE = "session.x64quantprecision"
"""onnxruntime's entry by which int8 weights become uint8, whose products any x86 adds up in 32 bits."""
FATAL = 4
"""onnxruntime's severity of what ends the process."""

Logits = Callable[[np.ndarray], np.ndarray]
"""Float32 (N, C, H, W), normalised -> float32 (N, K)."""


@dataclass(frozen=True)
class Runnable:
    """A network as its artefact has it: class names (NFC) as its logits go, how images are prepared."""

    classes: tuple[str, ...]
    transform: Transform
    logits: Logits
    runtime: str

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """Float32 (N, K), each row adding up to 1, of pixels uint8 (N, C, H, W)."""
        logits = self.logits(self.transform.normalised(pixels))
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)


def open_artefact(path: Path, threads: int = 0) -> Runnable:
    """The network in an artefact, with so many threads (0: as many as its runtime likes).

    It has classified one image, so that it runs. InputError for a suffix that no artefact has, a
    missing package, or a file that cannot be read; WeightsError naming it where it is damaged or not
    one of ours; MismatchError where the card beside it is another's.
    """
    path = Path(path)
    opened = OPENING[suffix_of(path)]
    runnable = opened(path, read_card(path, digest_of(path)), threads)
    blank = np.zeros((1, runnable.transform.channels, *runnable.transform.size), np.uint8)
    try:
        found = runnable.probabilities(blank).shape
    except Exception as error:  # of any kind: runtimes are not ours
        pass_on(error)
        raise WeightsError(f"{path} does not run ({_one_line(error)}); {GIVE}") from error
    if found != (1, len(runnable.classes)):
        raise WeightsError(
            f"{path} gives {found[1]} logits and names {len(runnable.classes)} classes; {GIVE}"
        )
    return runnable


def onnx_session(model: Path | bytes, threads: int = 0) -> Any:
    """onnxruntime's session of an ONNX file. InputError without onnxruntime, else what that raises.

    By its path a file is read piece by piece; of bytes there are two copies meanwhile.
    """
    onnxruntime = import_for("onnxruntime", "an ONNX file is run", "onnxruntime")
    # Errors are raised: what is logged besides would stand between our own lines. The default logger is
    # that of threads, and of sessions that onnxruntime makes by itself, as to quantise.
    onnxruntime.set_default_logger_severity(FATAL)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = FATAL
    if not counts_in_32_bits():
        # Else weights of 8 bits saturate, as files have that were made elsewhere. It costs time.
        options.add_session_config_entry(PRECISE, "1")
    if isinstance(model, Path) and not _is_text(str(model)):
        model = bytes(read_whole(model))  # onnxruntime takes names that are text alone
    given = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])


def _is_text(name: str) -> bool:
    return name.encode(errors="replace").decode() == name


def onnx_logits(session: Any) -> Logits:
    """What runs a session."""
    return lambda images: session.run(["logits"], {"images": images})[0]


def import_for(package: str, purpose: str, install: str) -> Any:
    """A package that only some artefacts need. InputError saying how to install it, where it is not."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise InputError(
            f"{purpose} with {package}, which cannot be imported ({_one_line(error)}); "
            f'pip install "{install}"'
        ) from error


def _open_onnx(path: Path, card: Card | None, threads: int) -> Runnable:
    try:
        session = onnx_session(path, threads)
    except InputError:
        raise
    except Exception as error:  # of any kind: onnxruntime's are not ours
        pass_on(error)
        raise WeightsError(f"{path} is damaged or no ONNX file ({_one_line(error)}); {GIVE}") from error
    words = session.get_modelmeta().custom_metadata_map
    classes, transform = _described(path, words, "metadata")
    return Runnable(classes, transform, onnx_logits(session), version_of("onnxruntime"))


def _open_safetensors(path: Path, card: Card | None, threads: int) -> Runnable:
    import_for("torch", "a safetensors file is run", "maskvote")
    network = importlib.import_module("client.artefacts.torch_network")
    saved = network.opened(path, threads)
    classes, transform = _described(path, saved.header, "header")
    return Runnable(classes, transform, network.logits_of(saved.network), version_of("torch"))


def _open_program(path: Path, card: Card | None, threads: int) -> Runnable:
    if card is None:
        raise InputError(
            f"{path} has no card {card_path(path).name} beside it, which names its classes; copy both"
        )
    program = importlib.import_module("client.artefacts.executorch_program")
    words = {
        "backbone": json.dumps(card.get("backbone")),
        "classes": "\n".join(map(str, card.get("classes", ()))),
    }
    classes, transform = _described(path, words, "card")
    try:
        logits = program.program_logits(bytes(read_whole(path)))
    except InputError:
        raise
    except Exception as error:  # of any kind: ExecuTorch's are not ours
        pass_on(error)
        raise WeightsError(f"{path} is damaged or no program ({_one_line(error)}); {GIVE}") from error
    return Runnable(classes, transform, logits, version_of("executorch"))


OPENING: Mapping[str, Callable[[Path, Card | None, int], Runnable]] = {
    ".onnx": _open_onnx,
    ".safetensors": _open_safetensors,
    ".pte": _open_program,
}


def _described(path: Path, words: Mapping[str, str], where: str) -> tuple[tuple[str, ...], Transform]:
    """Classes and transform as the file's own words have them. WeightsError where it has none."""
    lacking = [word for word in ("backbone", "classes") if not words.get(word)]
    if lacking:
        raise WeightsError(
            f"{path} is no network of a task: its {where} has no {' and no '.join(lacking)}; {GIVE}"
        )
    try:
        description = json.loads(words["backbone"])
        transform = Transform.of_backbone(description)
    except ValueError as error:  # InputError is one
        raise WeightsError(f"{path} does not tell how images are prepared ({error}); {GIVE}") from error
    return tuple(map(composed, words["classes"].split("\n"))), transform


def version_of(package: str) -> str:
    """A package and its version, as a card names it."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return package


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
