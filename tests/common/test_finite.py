"""A tensor's values are told to be finite or not, whatever its dtype, shape and layout."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.finite import is_finite
from common.tensor_file import DTYPES

FLOATS = [dtype for dtype in DTYPES.values() if dtype.is_floating_point]


@given(st.lists(st.floats(width=32), max_size=20), st.sampled_from([torch.float32, torch.float64]))
def test_it_agrees_with_looking_at_every_value(values, dtype):
    tensor = torch.tensor(values, dtype=dtype)
    assert is_finite(tensor) == all(map(math.isfinite, values))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_dtype_that_travels_is_looked_at(dtype):
    tensor = torch.ones(3, 4).to(dtype)
    assert is_finite(tensor)
    tensor[1, 2] = math.nan
    assert not is_finite(tensor)
    assert not is_finite(tensor.T)


def test_whole_numbers_and_nothing_at_all_are_finite():
    assert is_finite(torch.tensor([2**62]))
    assert is_finite(torch.tensor([True]))
    assert is_finite(torch.empty(0, 3))
    assert is_finite(torch.tensor(1.5, requires_grad=True))
