import json

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from common.errors import WeightsError
from common.tensor_file import DTYPES, Kind, blank_file, parts_of_file, read_tensors, write_tensors
from common.tensor_layout import MAX_HEADER_BYTES

TENSORS = {
    "weight": torch.arange(6.0).reshape(2, 3),
    "count": torch.tensor(5),
    "half": torch.arange(3).bfloat16(),
    "nothing": torch.zeros(0, 4),
    "odd": torch.tensor([1, 2, 3], dtype=torch.uint8),
    "größe\n": torch.ones(1, 1, 1),
}
WORDS = {"a": 'quote " and \\', "b": "größe", "": ""}


def same(one, other) -> bool:
    """Names, types, shapes and bytes: NaN is what it is."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype
        and one[name].shape == other[name].shape
        and raw(one[name]) == raw(other[name])
        for name in one
    )


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def file(header: object, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def one(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict:
    return {"x": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


# -- agreement with the library --------------------------------------------------------------------


def test_the_library_reads_what_is_written_here():
    assert same(load(bytes(write_tensors(TENSORS, WORDS))), TENSORS)


def test_what_the_library_writes_is_read_here():
    tensors, words = read_tensors(save(TENSORS, metadata=WORDS))
    assert same(tensors, TENSORS)
    assert words == WORDS


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_every_dtype_is_the_librarys(dtype):
    bits = torch.arange(64, dtype=torch.uint8)
    bits = bits % 2 if dtype is torch.bool else bits
    tensors = {"x": bits.view(dtype)}
    assert same(load(bytes(write_tensors(tensors, {}))), tensors)
    assert same(read_tensors(save(tensors))[0], tensors)


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=5).filter(lambda name: "\0" not in name),
        st.tuples(st.sampled_from(["F64", "F16", "I8"]), st.lists(st.integers(0, 3), max_size=4)),
        max_size=5,
    ),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
)
def test_reading_gives_what_was_written_and_so_does_the_library(described, words):
    tensors = {
        name: torch.randn(shape, dtype=torch.float64).mul(50).to(DTYPES[dtype])
        for name, (dtype, shape) in described.items()
    }
    data = write_tensors(tensors, words)
    assert same(read_tensors(data)[0], tensors)
    assert read_tensors(data)[1] == words
    assert same(load(bytes(data)), tensors)


def test_the_same_tensors_and_words_are_the_same_bytes():
    """Whatever the order of the words."""
    assert write_tensors(TENSORS, WORDS) == write_tensors(TENSORS, dict(reversed(WORDS.items())))


# -- whose memory it is ----------------------------------------------------------------------------


def test_tensors_are_the_bytes_they_were_read_from():
    data = bytearray(save({"x": torch.zeros(3)}))
    tensors, _ = read_tensors(memoryview(data))
    tensors["x"].fill_(1)
    assert same(load(bytes(data)), {"x": torch.ones(3)})
    with pytest.raises(BufferError):
        data.clear()  # while a tensor is there
    del tensors
    data.clear()


def test_bytes_that_cannot_be_written_to_are_copied_for_all_tensors_at_once():
    data = save({"x": torch.zeros(3), "y": torch.zeros(2)})
    kept = bytes(bytearray(data))
    tensors, _ = read_tensors(data)
    tensors["x"].fill_(1)
    assert data == kept
    assert abs(tensors["x"].data_ptr() - tensors["y"].data_ptr()) <= 12


@pytest.mark.parametrize("shift", range(8))
def test_every_tensor_lies_on_a_multiple_of_its_own_width(shift):
    """Also where the buffer starts anywhere, or a header's length is odd."""
    data = bytearray(shift) + file(
        {
            "a": {"dtype": "I8", "shape": [1], "data_offsets": [0, 1]},
            "b": {"dtype": "F64", "shape": [1], "data_offsets": [1, 9]},
        },
        b"\1" + np.float64(2.5).tobytes(),
    )
    tensors, _ = read_tensors(memoryview(data)[shift:])
    assert tensors["a"].tolist() == [1]
    assert tensors["b"].tolist() == [2.5]
    assert tensors["b"].data_ptr() % 8 == 0


def test_a_blank_file_is_written_through_its_places():
    data, places = blank_file({"x": Kind(torch.float32, (2, 2)), "n": Kind(torch.int64, ())}, {"a": "b"})
    places["x"].copy_(torch.eye(2))
    places["n"].fill_(7)
    assert same(load(bytes(data)), {"x": torch.eye(2), "n": torch.tensor(7)})


def test_memory_is_used_again_only_when_nothing_refers_to_it():
    """Neither the bytes, nor what was read from them, nor a single tensor."""
    kinds = {"x": Kind(torch.float32, (1000,))}
    data, places = blank_file(kinds, {})
    places["x"].fill_(1)
    held = [data.toreadonly(), data[-4:], read_tensors(data)[0]["x"], places["x"]]
    del data, places
    while held:
        other, blank = blank_file(kinds, {})
        blank["x"].fill_(2)
        last = held.pop()
        assert 2 not in (
            last.tolist() if isinstance(last, torch.Tensor) else np.frombuffer(last[-4:], "<f4")
        )
        del other, blank, last


def test_tensors_that_the_format_has_not_are_refused():
    with pytest.raises(WeightsError, match=r"torch\.complex128 cannot be written"):
        write_tensors({"x": torch.zeros(1, dtype=torch.complex128)}, {})
    with pytest.raises(WeightsError, match="__metadata__ cannot be written"):
        write_tensors({"__metadata__": torch.zeros(1)}, {})


# -- what is damaged -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (b"", "does not fit"),
        (b"1234567", "does not fit"),
        ((2**63).to_bytes(8, "little"), "does not fit"),
        ((2**64 - 8).to_bytes(8, "little") + b"{}", "does not fit"),
        (file(b""), "no JSON object"),
        (file(b" {}"), "no JSON object"),
        (file([]), "no JSON object"),
        (file(b"{"), ": "),
        (file(b"{} {}"), ": "),
        (file("{}".encode("utf-16")), ": "),
        (file(b'{"\xff": 1}'), ": "),
        (file(b'{"__metadata__": {"a": "\\ud800"}}'), ": "),
        (file(b'{"a":' * 100_000), ": "),
        (file(b'{"__metadata__": {}, "__metadata__": {}}'), "'__metadata__' is there twice"),
        (file(b'{"x": 1, "x": 1}'), "'x' is there twice"),
        (file({"__metadata__": []}), "are not texts"),
        (file({"__metadata__": {"a": 1}}), "are not texts"),
        (file({"x": 1}), "not described by"),
        (file({"x": {"dtype": "F32", "shape": [2]}}, bytes(8)), "not described by"),
        (file({"x": one()["x"] | {"more": 1}}, bytes(8)), "not described by"),
        (file(one("F31"), bytes(8)), "of dtype F31"),
        (file(one(None), bytes(8)), "of dtype None"),
        (file(one(["F32"]), bytes(8)), "of dtype"),
        (file(one(shape="2"), bytes(8)), "has shape 2"),
        (file(one(shape=[2.0]), bytes(8)), r"has shape \[2.0\]"),
        (file(one(shape=[True, 2]), bytes(8)), r"has shape \[True, 2\]"),
        (file(one(shape=[-2]), bytes(8)), "-2 is out of range"),
        (file(one(shape=[10**4000]), bytes(8)), "out of range"),
        (file(one(shape=[0, 2**62, 4], offsets=[0, 0])), "no tensor can have"),
        (file(one(shape=[1] * 17, offsets=[0, 4]), bytes(4)), "has shape"),
        (file(one(shape=[3]), bytes(8)), "in 8 bytes, not 12"),
        (file(one(shape=[2**61]), bytes(8)), "in 8 bytes, not"),
        (file(one(offsets=[0, 8, 8]), bytes(8)), r"at \[0, 8, 8\]"),
        (file(one(offsets=[8, 0]), bytes(8)), "in -8 bytes"),
        (file(one(offsets=[4, 12]), bytes(12)), "starts at byte 4, 0 is next"),
        (file(one(), bytes(7)), "8 bytes, the file has 7"),
        (file(one(), bytes(9)), "8 bytes, the file has 9"),
        (file(one() | {"y": one(offsets=[4, 12])["x"]}, bytes(12)), "starts at byte 4, 8 is next"),
        (file(one() | {"y": one()["x"]}, bytes(8)), "starts at byte 0, 8 is next"),
    ],
)
def test_a_damaged_file_is_refused_with_the_rule_that_it_breaks(data, rule):
    with pytest.raises(
        WeightsError, match=rf"{len(data):,} bytes are not a safetensors file.*{rule}.*again"
    ):
        read_tensors(data)


def test_a_header_beyond_the_limit_is_not_parsed():
    """100 MB, as in the library; the file is large enough to hold it."""
    data = np.zeros(8 + MAX_HEADER_BYTES + 1, dtype=np.uint8)
    data[:8] = np.frombuffer((MAX_HEADER_BYTES + 1).to_bytes(8, "little"), np.uint8)
    with pytest.raises(WeightsError, match="at most 100000000"):
        read_tensors(data.data)


SOUND = bytes(write_tensors(TENSORS, {"a": "b"}))
HEADER = 8 + int.from_bytes(SOUND[:8], "little")


@st.composite
def damaged(draw) -> bytes:
    """A file cut, lengthened, or with some of its bytes (of the header, more often) replaced."""
    data = bytearray(SOUND)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, HEADER - 1) | st.integers(0, len(SOUND) - 1))
        kind = draw(st.sampled_from(["flip", "digit", "cut", "insert", "length"]))
        if kind == "flip" and place < len(data):
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "digit" and place < len(data):
            data[place] = draw(st.sampled_from(b'0123456789,:[]{}" -eE.\\'))
        elif kind == "cut":
            del data[place:]
        elif kind == "insert":
            data[place:place] = draw(st.binary(max_size=8))
        elif kind == "length":
            data[:8] = draw(st.integers(0, 2**64 - 1) | st.integers(0, 2 * len(SOUND))).to_bytes(
                8, "little"
            )
    return bytes(data)


@settings(max_examples=600, deadline=None)
@given(damaged() | st.binary(max_size=40))
@example(SOUND)
def test_damaged_bytes_are_refused_or_read_as_the_library_reads_them(data):
    """Nothing but a WeightsError leaves, and no tensor reaches beyond the bytes."""
    try:
        tensors, _ = read_tensors(data)
    except WeightsError:
        return
    assert same(tensors, load(data))
    assert sum(t.numel() * t.element_size() for t in tensors.values()) < len(data)


ODD = st.integers(-1, 20) | st.sampled_from([2**31, 2**62, 2**63, 2**64, 10**30, 1.0, True, None, "8"])


@settings(max_examples=400, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["a", "b", "__metadata__"]),
        st.fixed_dictionaries(
            {
                "dtype": st.sampled_from([*DTYPES, "F4", "f32", 1]),
                "shape": st.lists(ODD, max_size=3) | ODD,
                "data_offsets": st.lists(ODD, min_size=1, max_size=3),
            }
        ),
        max_size=2,
    ),
    st.binary(max_size=24),
)
def test_headers_of_odd_numbers_are_refused_or_read_as_the_library_reads_them(header, body):
    data = file(header, body)
    try:
        tensors, _ = read_tensors(data)
    except WeightsError:
        return
    assert same(tensors, load(data))


def test_a_file_written_part_by_part_is_the_file_written_at_once():
    tensors = {
        "weights": torch.arange(6.0).reshape(2, 3).T,  # not contiguous
        "halves": torch.arange(3, dtype=torch.float16),
        "flags": torch.tensor([True, False]),
        "count": torch.tensor(7),
        "none": torch.zeros(0, 4),
    }
    words = {"said": "some words"}
    assert b"".join(parts_of_file(tensors, words)) == bytes(write_tensors(tensors, words))
