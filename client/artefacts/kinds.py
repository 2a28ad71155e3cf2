"""The kinds of artefact: how each is asked for, and how its files end."""

from __future__ import annotations

from pathlib import Path

from common.errors import InputError
from common.files import reading

SUFFIXES = {
    "onnx": ".onnx",
    "onnx-int8": ".onnx",
    "safetensors": ".safetensors",
    "executorch": ".pte",
}
"""Kind -> the suffix of its files, by which `predict` tells how they are run."""
TOLERANCE = 1e-4
"""How far another runtime's logits may be from torch's, as a share of the largest one."""


def suffix_of(path: Path) -> str:
    """The suffix of an artefact, or of what it is: what `adapt --save` wrote may have any name.

    InputError for a file that is none.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES.values():
        if _is_safetensors(path):
            return SUFFIXES["safetensors"]
        known = ", ".join(dict.fromkeys(SUFFIXES.values()))
        raise InputError(
            f"{path} ends in {suffix or 'nothing'!r}; an artefact ends in {known}: give what "
            "`maskvote-client export` wrote"
        )
    return suffix


def check_suffix(path: Path, kind: str) -> None:
    """Raise InputError unless a file of this kind may be called so."""
    if path.suffix.lower() != SUFFIXES[kind]:
        raise InputError(
            f"{path} ends in {path.suffix or 'nothing'!r}; predict knows {kind} by {SUFFIXES[kind]}: "
            f"give --out {path.with_suffix(SUFFIXES[kind])}"
        )


def check_calibration(kind: str, *, images: bool) -> None:
    """Raise InputError unless there are images, or this kind needs none."""
    if kind == "onnx-int8" and not images:
        raise InputError(
            "int8 is calibrated on the device's own training images, and none are given; give --data"
        )


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors files do: with a length, and with JSON."""
    if not path.is_file():
        return False
    with reading(path) as file:
        return file.read(9)[8:] == b"{"
