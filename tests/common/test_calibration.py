"""Calibration is measured as in Guo et al. (2017)."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.calibration import calibration_of, softmax


def logits_for(confidences: list[float]) -> np.ndarray:
    """Logits of two classes whose first one has these probabilities."""
    return np.array([[math.log(p / (1 - p)), 0.0] for p in confidences])


def test_the_expected_calibration_error_of_five_images_by_hand():
    """Two bins of width 0.5 are used of the four: 0.9 and 0.8 in one, three times 0.6 in the other.

    Of the first two one is right (0.5 against 0.85), of the others two of three (0.667 against 0.6).
    """
    found = calibration_of(logits_for([0.9, 0.8, 0.6, 0.6, 0.6]), np.array([0, 1, 0, 0, 1]), bins=4)
    assert found.confidence == pytest.approx(0.7)
    assert found.error == pytest.approx((2 * 0.35 + 3 * (2 / 3 - 0.6)) / 5)


def test_a_network_that_is_sure_and_right_has_no_error_and_one_that_is_wrong_has_all():
    sure = np.array([[1000.0, 0.0], [0.0, 1000.0]])
    assert calibration_of(sure, np.array([0, 1])).error == 0
    assert calibration_of(sure, np.array([1, 0])).error == 1


def test_without_images_there_is_no_calibration():
    found = calibration_of(np.zeros((0, 3)), np.zeros(0, dtype=int))
    assert math.isnan(found.error)
    assert math.isnan(found.confidence)


@given(st.integers(1, 40), st.integers(2, 6), st.integers(0, 2**31), st.floats(0.01, 100))
def test_the_error_lies_between_the_gap_of_the_means_and_one(count, classes, seed, scale):
    """Bins can only add up to more than the difference of mean accuracy and mean confidence."""
    generator = np.random.default_rng(seed)
    logits = scale * generator.standard_normal((count, classes))
    labels = generator.integers(0, classes, count)
    found = calibration_of(logits, labels)
    accuracy = float((softmax(logits).argmax(1) == labels).mean())
    assert abs(accuracy - found.confidence) - 1e-9 <= found.error <= 1 + 1e-9
    assert 1 / classes - 1e-9 <= found.confidence <= 1 + 1e-9
