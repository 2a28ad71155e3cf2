"""Tensor file: tensors and a few words about them in the safetensors layout, read and written in memory.

Own code for a format that has a library, as the library's `save` and `load` each copy all bytes more
than once (41 ms for 46 MB), and its `safe_open` maps the file: whoever truncates it kills the process.
The layout itself is in `common.tensor_layout`.
"""

from __future__ import annotations

import json
import math
import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from json.encoder import encode_basestring as quoted
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.errors import WeightsError
from common.files import Data
from common.tensor_layout import METADATA, read_layout

ALIGNMENT_BYTES = 64
"""Where the tensors start in a file that is written here: on a cache line, if the file is on one."""

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


def read_tensors(data: Data) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a file's bytes: the tensors are the bytes themselves, no copy.

    So they change together, and a bytearray cannot be resized while a tensor is there. Bytes that
    cannot be written to are copied once, and a tensor that lies across its own width is copied.
    Raises WeightsError on whatever is not a whole file of this layout: nothing beyond `data` is read.
    """
    start, entries, metadata = read_layout(data)
    view = memoryview(data).cast("B")
    # An array holds on to its buffer, which torch.frombuffer alone does not.
    array = np.frombuffer(bytearray(view) if view.readonly else view, dtype=np.uint8)
    address = array.ctypes.data
    tensors = {}
    for begin, end, name, kind, shape in entries:
        dtype = DTYPES[kind]
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
    text, ends = _header(kinds, metadata)
    begin = start = 8 + len(text)
    array = _memory(start + max(ends.values(), default=0))
    array[:start] = np.frombuffer(len(text).to_bytes(8, "little") + text, dtype=np.uint8)
    places = {}
    for name, end in ends.items():
        places[name] = _place(array, begin, start + end, *kinds[name])
        begin = start + end
    return array.data, places


def _header(kinds: Mapping[str, Kind], metadata: Mapping[str, str]) -> tuple[bytes, dict[str, int]]:
    """The header of a file of such tensors, padded, and where each one ends behind it, in their order."""
    unknown = {str(kind.dtype) for kind in kinds.values() if kind.dtype not in NAMES}
    if unknown or METADATA in kinds:
        raise WeightsError(
            f"tensors of {', '.join(sorted(unknown)) or METADATA} cannot be written; a safetensors file "
            f"holds {', '.join(DTYPES)}: convert them"
        )
    # Wide numbers first: every tensor then lies on a multiple of its own width.
    ordered = sorted(kinds.items(), key=lambda item: -WIDTHS[item[1].dtype])
    parts = [f"{quoted(METADATA)}:{json.dumps(dict(sorted(metadata.items())), ensure_ascii=False)}"]
    ends: dict[str, int] = {}
    end = 0
    for name, (dtype, shape) in ordered:
        begin, end = end, end + math.prod(shape) * WIDTHS[dtype]
        sizes = ",".join(map(str, shape))
        parts.append(
            f'{quoted(name)}:{{"dtype":"{NAMES[dtype]}","shape":[{sizes}],"data_offsets":[{begin},{end}]}}'
        )
        ends[name] = end
    text = f"{{{','.join(parts)}}}".encode()
    return text + b" " * (-(8 + len(text)) % ALIGNMENT_BYTES), ends


def parts_of_file(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Iterator[Data]:
    """The bytes of a file of these tensors, part by part: one tensor at a time is copied, if any is.

    Errors as of `blank_file`.
    """
    kinds = {name: Kind(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    text, ends = _header(kinds, metadata)
    yield len(text).to_bytes(8, "little") + text
    for name in ends:
        flat = tensors[name].detach().cpu().contiguous().reshape(-1)
        yield flat.view(torch.uint8).numpy().data if flat.numel() else b""


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
