"""The kinds of artefact: how each is asked for, and how its files end."""

from __future__ import annotations

from pathlib import Path

from common.errors import InputError

SUFFIXES = {
    "onnx": ".onnx",
    "onnx-int8": ".onnx",
    "safetensors": ".safetensors",
    "executorch": ".pte",
}
"""Kind -> the suffix of its files, by which `predict` tells how they are run."""


def suffix_of(path: Path) -> str:
    """The suffix of an artefact. InputError for one that none has."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES.values():
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
