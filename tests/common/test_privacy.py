"""Differential privacy: the noise that a guarantee needs, what one image can change, and an audit."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from common.errors import InputError
from common.privacy import (
    COUNT_WEIGHT,
    DEFAULT_DELTA,
    SENSITIVITY,
    Privacy,
    class_sums,
    gaussian_delta,
    gaussian_sigma,
    noised,
)

NAN, INF = float("nan"), float("inf")

# -- how much noise --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epsilon", "sigma"),
    [(0.5, 7.032), (1, 3.731), (2, 1.994), (4, 1.081), (6, 0.764), (8, 0.600), (10, 0.500), (20, 0.290)],
)
def test_the_noise_is_that_of_googles_dp_accounting(epsilon, sigma):
    """dp_accounting.get_sigma_gaussian(epsilon, 1e-5) of dp-accounting 0.6.0, to its third decimal."""
    assert gaussian_sigma(epsilon, 1e-5) == pytest.approx(sigma, abs=5e-4)


@pytest.mark.parametrize("epsilon", [0.1, 1, 8])
@pytest.mark.parametrize("delta", [1e-3, 1e-6])
def test_delta_is_what_one_gaussian_exceeds_the_other_times_e_to_the_epsilon(epsilon, delta):
    """The definition itself, summed over a fine grid: for outputs at 0 and, with one image more, at 1."""
    sigma = gaussian_sigma(epsilon, delta)
    at, step = np.linspace(-12 * sigma, 1 + 12 * sigma, 2_000_001, retstep=True)
    without, with_it = (
        np.exp(-(((at - mean) / sigma) ** 2) / 2) / (sigma * math.sqrt(2 * math.pi)) for mean in (0, 1)
    )
    exceeding = np.maximum(with_it - math.exp(epsilon) * without, 0).sum() * step
    assert exceeding == pytest.approx(delta, rel=1e-4)


@given(
    epsilon=st.floats(1e-3, 100), delta=st.floats(1e-12, 0.5), more=st.floats(1.01, 3)
)  # fmt: skip
def test_the_noise_keeps_the_delta_and_little_less_does_not(epsilon, delta, more):
    sigma = gaussian_sigma(epsilon, delta)
    assert 0 < sigma < INF
    assert gaussian_delta(epsilon, sigma) <= delta < gaussian_delta(epsilon, sigma * 0.999)
    assert gaussian_sigma(min(epsilon * more, 100), delta) <= sigma


def test_the_classical_formula_would_be_too_little_above_eight():
    classical = math.sqrt(2 * math.log(1.25 / 1e-5)) / 20
    assert gaussian_delta(20, classical) > 10 * 1e-5


@pytest.mark.parametrize("epsilon", [0, -1, 1e-4, 100.1, 1e308, NAN, INF, -INF])
def test_an_epsilon_that_guarantees_nothing_or_leaves_nothing_is_refused(epsilon):
    with pytest.raises(InputError, match=r"it is from 0\.001 .* to 100"):
        Privacy(epsilon)


@pytest.mark.parametrize("delta", [0, 1, -1e-5, 2, NAN, INF])
def test_a_delta_that_is_no_probability_is_refused(delta):
    with pytest.raises(InputError, match=r"a probability within \(0, 1\)"):
        Privacy(8, delta)


def test_all_that_is_released_pays_for_images_and_counts_at_once():
    assert math.isclose(SENSITIVITY, math.sqrt(1 + COUNT_WEIGHT**2))
    assert math.isclose(Privacy(8).sigma, SENSITIVITY * gaussian_sigma(8, DEFAULT_DELTA))
    assert str(Privacy(0.5)) == "epsilon 0.5, delta 1e-05"


@pytest.mark.parametrize(("epsilon", "images"), [(8, 20), (4, 36), (2, 66), (1, 124)])
def test_the_more_private_the_more_images_a_class_needs(epsilon, images):
    assert Privacy(epsilon).enough_images(64) == images


# -- what is released ------------------------------------------------------------------------------


def test_released_are_sums_of_unit_vectors_and_weighed_counts():
    rows = np.array([[3.0, 4.0], [0.0, 2.0], [0.0, 0.0], [-5.0, 0.0]])
    sums = class_sums(rows, np.array([0, 0, 0, 2]), 3)
    w = COUNT_WEIGHT
    np.testing.assert_allclose(sums, [[0.6, 1.8, 3 * w], [0, 0, 0], [-1, 0, w]])


def test_features_that_are_not_finite_count_and_add_nothing_else():
    """So nobody learns of an image by an error that a probe was made to give for it alone."""
    rows = np.array([[NAN, 1.0], [INF, 0.0], [-INF, NAN], [0.0, 2.0]])
    np.testing.assert_allclose(class_sums(rows, np.zeros(4, np.int64), 1), [[0, 1, 4 * COUNT_WEIGHT]])


numbers = st.floats(width=32)
tasks = st.tuples(st.integers(1, 12), st.integers(1, 5)).flatmap(
    lambda shape: st.tuples(
        arrays(np.float64, shape, elements=numbers),
        arrays(np.int64, shape[0], elements=st.integers(0, 3)),
    )
)


@given(task=tasks, which=st.integers(0, 11))
def test_whichever_image_is_added_or_removed_the_release_moves_by_the_sensitivity_at_most(task, which):
    rows, labels = task
    which %= len(rows)
    whole = class_sums(rows, labels, 4)
    without = class_sums(np.delete(rows, which, 0), np.delete(labels, which), 4)
    assert np.isfinite(whole).all()
    assert np.linalg.norm(whole - without) <= SENSITIVITY * (1 + 1e-12)


@given(task=tasks, cut=st.integers(0, 12))
def test_sums_of_parts_of_the_images_add_up_to_those_of_all(task, cut):
    rows, labels = task
    parts = [class_sums(rows[part], labels[part], 4) for part in (slice(cut), slice(cut, None))]
    np.testing.assert_allclose(sum(parts), class_sums(rows, labels, 4), rtol=1e-12, atol=1e-12)


@settings(deadline=None)
@given(task=tasks, epsilon=st.floats(1e-3, 100), seed=st.integers(0, 2**32))
def test_a_release_is_finite_and_counts_at_least_one_image_at_any_epsilon(task, epsilon, seed):
    rows, labels = task
    noise = np.random.default_rng(seed)
    sums, counts = noised(class_sums(rows, labels, 4), Privacy(epsilon), noise)
    assert (sums.shape, counts.shape, counts.dtype) == ((4, rows.shape[1]), (4,), np.int32)
    assert np.isfinite(sums).all()
    assert (counts >= 1).all()


def test_the_noise_on_every_number_is_as_large_as_was_promised():
    """Of a class without images: its sums are nothing but noise, and those of its count too."""
    privacy, noise = Privacy(0.01), np.random.default_rng(0)
    rows, labels = np.ones((1, 20_000)), np.array([1])
    sums, _ = noised(class_sums(rows, labels, 2), privacy, noise)
    assert np.std(sums[0]) == pytest.approx(privacy.sigma, rel=0.02)
    assert np.std(sums[1]) == pytest.approx(privacy.sigma, rel=0.02)
    empty = np.zeros((0, 1)), np.zeros(0, dtype=np.int64)
    _, counts = noised(class_sums(*empty, 20_000), privacy, noise)
    assert np.mean(counts == 1) == pytest.approx(0.5, abs=0.02)
    off = counts[counts > 1].astype(float)
    assert np.sqrt((off**2).mean()) == pytest.approx(privacy.sigma / COUNT_WEIGHT, rel=0.03)


# -- an audit --------------------------------------------------------------------------------------


def advantages(claimed: Privacy, added: Privacy, times: int) -> np.ndarray:
    """TPR - e^epsilon FPR of telling by a release whether an image was in it, at many thresholds.

    The best test there is: how far the release lies along what the image adds to it.
    """
    rows, labels = np.eye(3), np.array([0, 1, 0])
    noise = np.random.default_rng(0)
    signal = (class_sums(rows, labels, 2) - class_sums(rows[:2], labels[:2], 2)).ravel()

    def scores(images: int) -> np.ndarray:
        whole = class_sums(rows[:images], labels[:images], 2)
        released = [noised(whole, added, noise) for _ in range(times)]
        flat = [np.column_stack([sums, COUNT_WEIGHT * counts]).ravel() for sums, counts in released]
        return np.array(flat) @ signal

    with_it, without = scores(3), scores(2)
    thresholds = np.quantile(np.concatenate([with_it, without]), np.linspace(0.01, 0.99, 50))
    positives = (with_it[:, None] > thresholds).mean(0)
    false_positives = (without[:, None] > thresholds).mean(0)
    return positives - math.exp(claimed.epsilon) * false_positives


TIMES = 4000
CLAIMED = Privacy(0.5, 0.01)
ERROR = 4 * math.sqrt((1 + math.exp(2 * CLAIMED.epsilon)) / (4 * TIMES))
"""Four standard errors of an advantage, at most."""


def test_nobody_tells_by_a_release_whether_an_image_was_in_it_better_than_is_guaranteed():
    assert advantages(CLAIMED, CLAIMED, TIMES).max() <= CLAIMED.delta + ERROR


def test_the_audit_finds_out_noise_that_is_too_little():
    """A quarter of it."""
    too_little = Privacy(2.4, 0.01)
    assert too_little.sigma < CLAIMED.sigma / 2
    assert advantages(CLAIMED, too_little, TIMES).max() > CLAIMED.delta + ERROR
