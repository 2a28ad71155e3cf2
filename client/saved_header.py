"""The header of a saved network: its backbone and its classes, read without torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from common.class_names import composed
from common.errors import InputError, WeightsError
from common.files import Data, read_whole
from common.tensor_layout import read_layout


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn what is wrong with the content of a saved network into a WeightsError that names its file."""
    try:
        yield
    except InputError as error:
        raise WeightsError(
            f"{path} cannot be used as a network ({error}); give what "
            "`maskvote-client adapt --save` wrote"
        ) from error


def classes_of(path: Path) -> tuple[str, ...]:
    """The class names in the file of a saved network. WeightsError naming it where it is none."""
    data = read_whole(path)
    with naming(path):
        return classes_in(read_header(data))


def read_header(data: Data) -> Mapping[str, str]:
    """The header in the bytes of a saved network. WeightsError where they are no whole file of one."""
    header = read_layout(data).metadata
    check_header(header)
    return header


def check_header(header: Mapping[str, str]) -> None:
    """Raise WeightsError unless the header names a backbone and classes."""
    lacking = [word for word in ("backbone", "classes") if word not in header]
    if lacking:
        raise WeightsError(f"its header has no {' and no '.join(lacking)}")


def classes_in(header: Mapping[str, str]) -> tuple[str, ...]:
    """The class names, in NFC, as the network's logits go."""
    return tuple(map(composed, header["classes"].split("\n")))
