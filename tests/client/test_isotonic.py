"""Isotonic regression, by hand."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.isotonic import isotonic


@pytest.mark.parametrize(
    ("values", "fitted"),
    [
        ((), ()),
        ((5.0,), (5.0,)),
        ((1.0, 2.0, 2.0, 3.0), (1.0, 2.0, 2.0, 3.0)),
        # One pair falls: both become its mean.
        ((1.0, 4.0, 2.0, 5.0), (1.0, 3.0, 3.0, 5.0)),
        # The mean of the last two, 2.5, is below the 3 before them: (3 + 4 + 1) / 3.
        ((3.0, 4.0, 1.0), (8 / 3, 8 / 3, 8 / 3)),
        # A pool of two weighs twice as much as a single value: (6 + 4 + 2) / 3 = 4, and 3 is below it.
        ((6.0, 4.0, 2.0, 3.0), (3.75, 3.75, 3.75, 3.75)),
        ((3.0, 2.0, 1.0), (2.0, 2.0, 2.0)),
    ],
)
def test_the_fit_is_what_was_worked_out_by_hand(values, fitted):
    assert isotonic(values) == pytest.approx(fitted)


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=12), st.randoms())
def test_it_never_falls_and_nothing_that_rises_is_nearer(values, random):
    fitted = np.array(isotonic(values))
    assert all(low <= high for low, high in pairwise(fitted))
    assert fitted.mean() == pytest.approx(np.mean(values))
    other = np.sort(fitted + [random.uniform(-5, 5) for _ in values])
    assert ((fitted - values) ** 2).sum() <= ((other - values) ** 2).sum() + 1e-9
