"""Similarity measures of simulations, by hand-computed answers and by what they promise."""

from types import SimpleNamespace

import numpy as np
import pytest

from common.errors import InputError
from common.signature import signature_of
from simulations.similarities import SIMILARITIES, gbc, logme

LOT = np.random.default_rng(0)


def log_evidence(rows: np.ndarray, target: np.ndarray, prior: float, noise: float) -> float:
    """ln p(target) of a Gaussian with covariance rows rows' / prior + I / noise, as it is defined."""
    covariance = rows @ rows.T / prior + np.eye(len(rows)) / noise
    _, determinant = np.linalg.slogdet(covariance)
    fit = target @ np.linalg.solve(covariance, target)
    return -0.5 * (fit + determinant + len(rows) * np.log(2 * np.pi))


def test_logme_is_the_best_log_evidence_of_a_grid_of_priors_and_noises():
    rows = LOT.normal(size=(40, 3))
    labels = (rows[:, 0] + 0.5 * LOT.normal(size=40) > 0).astype(np.int64)
    grid = np.geomspace(1e-2, 1e3, 120)
    best = [
        max(log_evidence(rows, (labels == k).astype(float), a, b) for a in grid for b in grid[40::2])
        for k in (0, 1)
    ]
    assert logme(rows, labels) == pytest.approx(np.mean(best) / 40, abs=2e-3)


def test_gbc_of_two_equal_gaussians_is_minus_two_and_of_distant_ones_zero():
    one = LOT.normal(size=(50, 2))
    same = np.concatenate([one, one])
    labels = np.repeat([0, 1], 50)
    assert gbc(same, labels) == pytest.approx(-2)
    assert gbc(np.concatenate([one, one + 100]), labels) == pytest.approx(0, abs=1e-9)


def test_gbc_of_two_one_dimensional_gaussians_by_hand():
    rows = np.array([[-1.0], [1.0], [2.0], [6.0]])  # means 0 and 4, variances 1 and 4
    between = 2.5
    distance = 16 / between / 8 + np.log(between / 2) / 2
    assert gbc(rows, np.array([0, 0, 1, 1])) == pytest.approx(-2 * np.exp(-distance), rel=1e-5)


@pytest.mark.parametrize("measure", [logme, gbc])
def test_no_examples_have_no_score(measure):
    with pytest.raises(InputError, match="not none"):
        measure(np.empty((0, 3)), np.empty(0, dtype=np.int64))


@pytest.mark.parametrize("name", SIMILARITIES)
def test_every_measure_is_in_range_and_all_but_chance_put_the_task_itself_first(name):
    """Library tasks are other draws of classes in the same space; one is of the same classes."""
    centres = 3 * LOT.normal(size=(30, 16))
    labels = np.repeat(np.arange(5), 20)

    def task(first: int) -> np.ndarray:
        return centres[first : first + 5][labels] + LOT.normal(size=(100, 16))

    own = task(0)
    probe = SimpleNamespace(center=np.zeros(16, dtype=np.float32), directions=np.eye(16)[:8])
    signature = signature_of(own, labels, 5, "p")
    similarity = SIMILARITIES[name](probe, lambda _: (own, labels))
    for first in (25, 10, 0, 20, 15):
        similarity.add(str(first), signature_of(task(first), labels, 5, "p"))
    entries, values = similarity.to(signature)
    assert list(entries) == ["25", "10", "0", "20", "15"]
    assert ((values >= 0) & (values <= 1)).all()
    assert np.array_equal(values, similarity.to(signature)[1])
    if name != "random":
        assert entries[int(values.argmax())] == "0"
