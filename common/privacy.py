"""Differential privacy: what a device releases of its images, with as much noise as a guarantee needs.

Released are, per class, the sum of its images' features and how many they are. Every feature is first
scaled to length 1, so no image weighs more than another and no constant is learnt from private data.
One Gaussian on every number then gives (epsilon, delta)-differential privacy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from common.errors import InputError

LEAST_EPSILON, LARGEST_EPSILON = 1e-3, 100.0
"""Below the least nothing is left of any task; above the largest nothing worth the name is promised."""
DEFAULT_DELTA = 1e-5
"""Well below one in the images of a device, which number thousands: a delta of 1/n would be kept by
publishing one image in full, drawn at random."""
COUNT_WEIGHT = 0.25
"""What an image adds to its class's count, where its feature adds a vector of length 1. So counts make
the noise of the sums 3 % larger, not 41 % as with a weight of 1; at epsilon 8 they are 2.5 images off."""
SENSITIVITY = math.hypot(1, COUNT_WEIGHT)
"""How far in L2 norm, at most, one image more or less moves what is released before noise."""
DIRECTIONS = 64
"""How many numbers a class's private features have, see `common.directions`: half as many confuse tasks
even without noise, twice as many are drowned by noise sooner."""
CLEAR = 4
"""How many times the length of its noise a sum can have, at least, in a class of enough images."""


@dataclass(frozen=True)
class Privacy:
    """What a release guarantees: (epsilon, delta)-differential privacy for one image more or less.

    Whichever image of the device is added or removed, each result becomes at most e^epsilon times as
    likely, except for a probability of delta. `epsilon` is from 0.001 to 100, `delta` within (0, 1);
    InputError otherwise.
    """

    epsilon: float
    delta: float = DEFAULT_DELTA

    def __post_init__(self) -> None:
        if not LEAST_EPSILON <= self.epsilon <= LARGEST_EPSILON:
            raise InputError(
                f"epsilon is {self.epsilon}; it is from {LEAST_EPSILON:g} (most private) to "
                f"{LARGEST_EPSILON:g} (hardly), and 8 is a usual choice; leave it out for no noise"
            )
        if not 0 < self.delta < 1:
            raise InputError(
                f"delta is {self.delta}; it is a probability within (0, 1), best below one in the number "
                f"of images, as {DEFAULT_DELTA:g} is"
            )

    def __str__(self) -> str:
        return f"epsilon {self.epsilon:g}, delta {self.delta:g}"

    @property
    def sigma(self) -> float:
        """Standard deviation of the noise on every number that is released."""
        return SENSITIVITY * gaussian_sigma(self.epsilon, self.delta)

    def enough_images(self, directions: int) -> int:
        """How many images a class needs to stand out: about 20 at epsilon 8, 66 at 2, 123 at 1.

        With fewer, a sum of so many numbers is less than 4 times as long as its noise, even were all
        images alike; from there on at least nine in ten of the nearest tasks are still found.
        """
        return math.ceil(CLEAR * self.sigma * math.sqrt(directions))


def class_sums(rows: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """What is released, without noise: float64 (K, d + 1) of features (N, d) of classes int64 (N,).

    Per class the sum of its features, each of length 1, then COUNT_WEIGHT times how many they are. A
    feature that has no direction, as it is zero or not finite, counts and adds nothing else: to refuse
    it would tell of the image. One image more or less moves the release by SENSITIVITY at most. Sums of
    parts of the images add up to those of all.
    """
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    # Squares of numbers still smaller or larger leave the range, and a length made of them is off.
    sound = (lengths > 1e-100) & (lengths < 1e100)
    units = np.divide(rows, lengths, out=np.zeros(rows.shape), where=sound)
    sums = np.zeros((classes, rows.shape[1] + 1))
    np.add.at(sums, labels, np.column_stack([units, np.full(len(rows), COUNT_WEIGHT)]))
    return sums


def noised(
    sums: np.ndarray, privacy: Privacy, noise: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A release: class sums float64 (K, d) and counts int32 (K,), each at least 1, both noised.

    `sums` are those of `class_sums`, of all images. Classes share no image, so one Gaussian per number
    is enough for all of them.
    """
    sums = sums + privacy.sigma * noise.standard_normal(sums.shape)
    counts = np.clip(np.rint(sums[:, -1] / COUNT_WEIGHT), 1, np.iinfo(np.int32).max)
    return sums[:, :-1], counts.astype(np.int32)


@cache
def gaussian_sigma(epsilon: float, delta: float) -> float:
    """The least noise that makes a release of L2 sensitivity 1 (epsilon, delta)-differentially private.

    The analytic Gaussian mechanism (Balle and Wang 2018, arXiv 1805.06530, theorem 8), for epsilon from
    0.001 to 100. It is exact at every epsilon; sqrt(2 ln(1.25 / delta)) / epsilon is too little above 8.
    """
    too_little, enough = 1e-3, 1e6
    while enough > too_little * (1 + 1e-12):
        middle = math.sqrt(too_little * enough)
        if gaussian_delta(epsilon, middle) > delta:
            too_little = middle
        else:
            enough = middle
    return enough


def gaussian_delta(epsilon: float, sigma: float) -> float:
    """The delta that noise of this standard deviation gives at L2 sensitivity 1, in [0, 1]."""
    shift = 1 / (2 * sigma)
    return _normal(shift - epsilon * sigma) - math.exp(epsilon) * _normal(-shift - epsilon * sigma)


def _normal(value: float) -> float:
    """The standard normal distribution function, exact far out in the lower tail."""
    return math.erfc(-value / math.sqrt(2)) / 2
