"""Tensor file: tensors and a few words about them in the safetensors layout, read and written in memory.

Own code for a format that has a library, as the library's `save` and `load` each copy all bytes more
than once (41 ms for 46 MB), and its `safe_open` maps the file: whoever truncates it kills the process.

    8 bytes     N, the header's size, little-endian
    N bytes     JSON: {"__metadata__": {word: text}, name: {"dtype", "shape", "data_offsets"}, ...}
    the rest    the tensors' bytes, little-endian, one after the other without a gap
"""

from __future__ import annotations

import json
import math
import weakref
from collections import deque
from collections.abc import Mapping
from json.encoder import encode_basestring as quoted
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.errors import WeightsError
from common.files import Data

MAX_HEADER_BYTES = 100_000_000  # the library's own limit
MAX_DIMENSIONS = 16
MAX_NUMBER = 2**63 - 1
ALIGNMENT_BYTES = 64
"""Where the tensors start in a file that is written here: on a cache line, if the file is on one."""

METADATA = "__metadata__"
DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
WIDTHS = {dtype: dtype.itemsize for dtype in NAMES}

SPARE_AT_MOST = 4
"""Memory is used again for a file of at least a quarter of its size."""
_spare: deque[np.ndarray] = deque(maxlen=1)


class Kind(NamedTuple):
    """What a tensor is, without its values."""

    dtype: torch.dtype
    shape: tuple[int, ...]


class _Entry(NamedTuple):
    begin: int
    end: int
    name: str
    kind: Kind


def read_tensors(data: Data) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a file's bytes: the tensors are the bytes themselves, no copy.

    So they change together, and a bytearray cannot be resized while a tensor is there. Bytes that
    cannot be written to are copied once, and a tensor that lies across its own width is copied.
    Raises WeightsError on whatever is not a whole file of this layout: nothing beyond `data` is read.
    """
    view = memoryview(data).cast("B")
    try:
        start, entries, metadata = _parsed(view)
    except (ValueError, RecursionError) as error:
        raise WeightsError(
            f"these {len(view):,} bytes are not a safetensors file: {str(error)[:300]}; "
            "have it sent or written again"
        ) from error
    # An array holds on to its buffer, which torch.frombuffer alone does not.
    array = np.frombuffer(bytearray(view) if view.readonly else view, dtype=np.uint8)
    address = array.ctypes.data
    tensors = {}
    for begin, end, name, (dtype, shape) in entries:
        if (address + start + begin) % WIDTHS[dtype]:
            across = torch.frombuffer(array, dtype=torch.uint8, count=end - begin, offset=start + begin)
            tensors[name] = across.clone().view(dtype).view(shape)
        else:
            tensors[name] = _place(array, start + begin, start + end, dtype, shape)
    return tensors, metadata


def blank_file(
    kinds: Mapping[str, Kind], metadata: Mapping[str, str]
) -> tuple[memoryview, dict[str, Tensor]]:
    """A file of such tensors yet to be written: its bytes, and every tensor as its place in them.

    The same text for the same arguments. Raises WeightsError on a dtype that the format has not.
    """
    unknown = {str(kind.dtype) for kind in kinds.values() if kind.dtype not in NAMES}
    if unknown or METADATA in kinds:
        raise WeightsError(
            f"tensors of {', '.join(sorted(unknown)) or METADATA} cannot be written; a safetensors file "
            f"holds {', '.join(DTYPES)}: convert them"
        )
    # Wide numbers first: every tensor then lies on a multiple of its own width.
    ordered = sorted(kinds.items(), key=lambda item: -WIDTHS[item[1].dtype])
    parts = [f"{quoted(METADATA)}:{json.dumps(dict(sorted(metadata.items())), ensure_ascii=False)}"]
    ends, end = [], 0
    for name, (dtype, shape) in ordered:
        begin, end = end, end + math.prod(shape) * WIDTHS[dtype]
        sizes = ",".join(map(str, shape))
        parts.append(
            f'{quoted(name)}:{{"dtype":"{NAMES[dtype]}","shape":[{sizes}],"data_offsets":[{begin},{end}]}}'
        )
        ends.append(end)
    text = f"{{{','.join(parts)}}}".encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT_BYTES)
    begin = start = 8 + len(text)
    array = _memory(start + end)
    array[:start] = np.frombuffer(len(text).to_bytes(8, "little") + text, dtype=np.uint8)
    places = {}
    for (name, (dtype, shape)), end in zip(ordered, ends, strict=True):
        places[name] = _place(array, begin, start + end, dtype, shape)
        begin = start + end
    return array.data, places


def write_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> memoryview:
    """A file of these tensors, copied into it once. Errors as of `blank_file`."""
    kinds = {name: Kind(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    data, places = blank_file(kinds, metadata)
    with torch.no_grad():
        for name, place in places.items():
            place.copy_(tensors[name])
    return data.toreadonly()


def _place(array: np.ndarray, begin: int, end: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """A tensor on some bytes of an array, with a storage of its own: to copy one never copies all."""
    if begin == end:
        return torch.empty(shape, dtype=dtype)
    count = (end - begin) // WIDTHS[dtype]
    flat = torch.frombuffer(array, dtype=dtype, count=count, offset=begin)
    return flat if len(shape) == 1 else flat.view(shape)


def _memory(size: int) -> np.ndarray:
    """Bytes to write a file into, uint8 (size,), holding anything.

    Large files are made one after the other, and half of what one costs is the system's handing out
    its pages. So the last one's memory is used again, once nothing refers to it any more.
    """
    try:
        block = _spare.pop()
    except IndexError:  # none, or another thread has it
        block = np.empty(0, dtype=np.uint8)
    if not size <= len(block) <= SPARE_AT_MOST * size:
        block = np.empty(size, dtype=np.uint8)
    array = block[:size]
    weakref.finalize(array, _spare.append, block).atexit = False
    return array


def _parsed(view: memoryview) -> tuple[int, list[_Entry], dict[str, str]]:
    """Where the tensors start, what they are in the order of their bytes, and the metadata."""
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
    for begin, end, name, _ in entries:
        if begin != at:
            raise ValueError(f"{name[:80]!r} starts at byte {begin}, {at} is next")
        at = end
    if 8 + length + at != len(view):
        raise ValueError(f"the tensors have {at} bytes, the file has {len(view) - 8 - length} for them")
    for name in (*header, *metadata, *metadata.values()):
        name.encode()  # JSON can spell half a character, which is no text
    return 8 + length, entries, metadata


def _entry(name: str, value: Any) -> _Entry:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name[:80]!r} is not described by dtype, shape and data_offsets")
    dtype = DTYPES.get(value["dtype"]) if isinstance(value["dtype"], str) else None
    if dtype is None:
        found = str(value["dtype"])[:20]
        raise ValueError(f"{name[:80]!r} is of dtype {found}; known are {', '.join(DTYPES)}")
    shape, offsets = value["shape"], value["data_offsets"]
    if not _numbers(shape) or len(shape) > MAX_DIMENSIONS or not _numbers(offsets) or len(offsets) != 2:
        raise ValueError(f"{name[:80]!r} has shape {str(shape)[:80]} at {str(offsets)[:80]}")
    begin, end = offsets
    # A size of nothing may have other dimensions beyond all bounds: those count as well.
    if math.prod(max(size, 1) for size in shape) > MAX_NUMBER:
        raise ValueError(f"{name[:80]!r} has shape {str(shape)[:80]}, which no tensor can have")
    if end - begin != math.prod(shape) * WIDTHS[dtype]:
        raise ValueError(
            f"{name[:80]!r} is {value['dtype']} {tuple(shape)} in {end - begin} bytes, "
            f"not {math.prod(shape) * WIDTHS[dtype]}"
        )
    return _Entry(begin, end, name, Kind(dtype, tuple(shape)))


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
