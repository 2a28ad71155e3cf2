"""Bytes that are not what they should be, for hypothesis."""

from hypothesis import strategies as st


@st.composite
def damaged(draw, valid: bytes):
    """Arbitrary bytes, or the valid ones with some overwritten, cut out, or doubled."""
    if draw(st.booleans()):
        return draw(st.binary(max_size=200))
    data = bytearray(valid)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 8)))
        data[start:end] = draw(st.binary(max_size=8) | st.just(bytes(data[start:end]) * 2))
    return bytes(data)
