"""The layout of a safetensors file: its header, read and checked. Nothing here needs torch.

8 bytes     N, the header's size, little-endian
N bytes     JSON: {"__metadata__": {word: text}, name: {"dtype", "shape", "data_offsets"}, ...}
the rest    the tensors' bytes, little-endian, one after the other without a gap
"""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple

from common.errors import WeightsError
from common.files import Data

MAX_HEADER_BYTES = 100_000_000  # the library's own limit
MAX_DIMENSIONS = 16
MAX_NUMBER = 2**63 - 1

METADATA = "__metadata__"
WIDTHS = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
}
"""The format's names of numbers -> the bytes of one."""


class Entry(NamedTuple):
    """A tensor: where its bytes begin and end after the header, its name, its numbers and its shape."""

    begin: int
    end: int
    name: str
    dtype: str
    shape: tuple[int, ...]


class Layout(NamedTuple):
    """Where the tensors start, what they are in the order of their bytes, and the metadata."""

    start: int
    entries: list[Entry]
    metadata: dict[str, str]


def read_layout(data: Data) -> Layout:
    """The layout of a file's bytes. WeightsError on whatever is not a whole file of this layout."""
    view = memoryview(data).cast("B")
    try:
        return _parsed(view)
    except (ValueError, RecursionError) as error:
        raise WeightsError(
            f"these {len(view):,} bytes are not a safetensors file: {str(error)[:300]}; "
            "have it sent or written again"
        ) from error


def _parsed(view: memoryview) -> Layout:
    length = int.from_bytes(view[:8], "little")
    if len(view) < 8 or 8 + length > len(view):
        raise ValueError(f"the header of {length} bytes does not fit")
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"the header has {length} bytes, at most {MAX_HEADER_BYTES} are allowed")
    text = bytes(view[8 : 8 + length]).decode("utf-8")
    if not text.startswith("{"):
        raise ValueError("the header is no JSON object")
    header = json.loads(text, object_pairs_hook=_without_duplicates, parse_int=_natural)
    metadata = header.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError("the metadata are not texts")
    entries = sorted(_entry(name, value) for name, value in header.items())
    at = 0
    for begin, end, name, *_ in entries:
        if begin != at:
            raise ValueError(f"{name[:80]!r} starts at byte {begin}, {at} is next")
        at = end
    if 8 + length + at != len(view):
        raise ValueError(f"the tensors have {at} bytes, the file has {len(view) - 8 - length} for them")
    for name in (*header, *metadata, *metadata.values()):
        name.encode()  # JSON can spell half a character, which is no text
    return Layout(8 + length, entries, metadata)


def _entry(name: str, value: Any) -> Entry:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name[:80]!r} is not described by dtype, shape and data_offsets")
    dtype = value["dtype"]
    if not isinstance(dtype, str) or dtype not in WIDTHS:
        raise ValueError(f"{name[:80]!r} is of dtype {str(dtype)[:20]}; known are {', '.join(WIDTHS)}")
    shape, offsets = value["shape"], value["data_offsets"]
    if not _numbers(shape) or len(shape) > MAX_DIMENSIONS or not _numbers(offsets) or len(offsets) != 2:
        raise ValueError(f"{name[:80]!r} has shape {str(shape)[:80]} at {str(offsets)[:80]}")
    begin, end = offsets
    # A size of nothing may have other dimensions beyond all bounds: those count as well.
    if math.prod(max(size, 1) for size in shape) > MAX_NUMBER:
        raise ValueError(f"{name[:80]!r} has shape {str(shape)[:80]}, which no tensor can have")
    if end - begin != math.prod(shape) * WIDTHS[dtype]:
        raise ValueError(
            f"{name[:80]!r} is {dtype} {tuple(shape)} in {end - begin} bytes, "
            f"not {math.prod(shape) * WIDTHS[dtype]}"
        )
    return Entry(begin, end, name, dtype, tuple(shape))


def _numbers(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int for value in values)


def _natural(digits: str) -> int:
    """A whole number from 0, of a size that a machine can count to."""
    if digits.startswith("-") or len(digits) > 19 or (number := int(digits)) > MAX_NUMBER:
        raise ValueError(f"{digits[:30]} is out of range")
    return number


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice[:80]!r} is there twice")
    return result
