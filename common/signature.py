"""Signature: what a device tells about its task. Class means of features, never an image or a name."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import nn

from common.backbone import weights_digest
from common.directions import principal_directions
from common.errors import MismatchError, SignatureError
from common.files import Data
from common.fitting import BATCH, all_features, features_by_batch
from common.images import LabelledImages
from common.privacy import Privacy, noised_sums
from common.structure import Structure
from common.subnetwork import SubNetwork

VERSION = 1
MAX_CLASSES = 1000


@dataclass(frozen=True, eq=False)
class TaskSignature:
    """Per class of a task: the mean of its images' features in the probe, and how many they were.

    `means` is float16 (K, D), K in 2..1000; `counts` is int32 (K,), each at least 1. Classes have
    no names and no order. `probe` is the digest of the probe whose features they are. Raises
    SignatureError with every rule that is broken.
    """

    probe: str
    means: np.ndarray
    counts: np.ndarray

    def __post_init__(self) -> None:
        means, counts = np.asarray(self.means), np.asarray(self.counts)
        problems = []
        if means.dtype != np.float16 or means.ndim != 2:
            problems.append(f"means are {means.dtype} {means.shape}, not float16 (classes, width)")
        elif not np.isfinite(means).all():
            problems.append(f"{int((~np.isfinite(means)).sum())} means are NaN or infinite")
        if counts.dtype != np.int32 or counts.shape != means.shape[:1]:
            problems.append(f"counts are {counts.dtype} {counts.shape}, not int32 (classes,)")
        elif not 2 <= len(counts) <= MAX_CLASSES:
            problems.append(f"{len(counts)} classes; from 2 to {MAX_CLASSES} make a task")
        elif (counts < 1).any():
            problems.append(f"a class of {int(counts.min())} images; each has at least one")
        if problems:
            raise SignatureError(f"this is no signature: {'; '.join(problems)}; compute it again")
        for name, array in (("means", means), ("counts", counts)):
            array = array.copy()
            array.setflags(write=False)
            object.__setattr__(self, name, array)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TaskSignature) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def classes(self) -> int:
        """K, the number of classes."""
        return len(self.counts)

    @property
    def images(self) -> int:
        """How many images it was computed from."""
        return int(self.counts.sum())

    @cached_property
    def digest(self) -> str:
        """sha256 over version, probe, shape and values."""
        digest = hashlib.sha256(f"{VERSION} {self.probe} {self.means.shape}".encode())
        digest.update(self.means.tobytes())
        digest.update(self.counts.tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Probe:
    """The small fixed network that every device computes its signature with, and a public mean.

    It is a sub-network of the backbone, so it travels as one. `center` is float32 (D,): the mean
    feature of the server's own images, which is what all tasks share and none is told by.
    """

    subnetwork: SubNetwork
    center: np.ndarray

    def __post_init__(self) -> None:
        center = np.asarray(self.center, dtype=np.float32)
        if center.ndim != 1 or not np.isfinite(center).all():
            raise SignatureError(f"the probe's center is {center.shape}; needed: finite (width,)")
        object.__setattr__(self, "center", center)

    @cached_property
    def network(self) -> nn.Module:
        """The network itself, in evaluation mode: of the probe's own tensors, so it is never trained."""
        return self.subnetwork.network(num_classes=1).requires_grad_(False)

    def to_bytes(self) -> memoryview:
        """A safetensors file: the sub-network's, with the center among its tensors."""
        weights = {**self.subnetwork.weights, CENTER: torch.from_numpy(self.center.copy())}
        return SubNetwork(self.subnetwork.backbone, self.subnetwork.mask, weights).to_bytes()

    @classmethod
    def from_bytes(cls, data: Data, structure: Structure) -> Probe:
        """The probe in such a file; errors as of `SubNetwork.from_bytes`."""
        whole = SubNetwork.from_bytes(data, structure)
        weights = dict(whole.weights)
        if CENTER not in weights:
            raise SignatureError("the file is a sub-network but no probe; fetch the probe again")
        center = weights.pop(CENTER).numpy()
        return cls(SubNetwork(whole.backbone, whole.mask, weights), center)

    @cached_property
    def digest(self) -> str:
        """sha256 over backbone, mask and tensors: part of every signature that was made with it.

        Not over its bytes: a file's layout may change, and the probe is still the same.
        """
        network = self.subnetwork
        digest = hashlib.sha256(network.backbone.to_json().encode())
        digest.update(network.mask.structure.digest.encode() + network.mask.pack())
        digest.update(weights_digest(network.weights).encode() + self.center.tobytes())
        return digest.hexdigest()

    @cached_property
    def directions(self) -> np.ndarray:
        """Orthonormal float64 (d, D): what private signatures tell of features; see common/directions.py.

        Takes as long as describing some 256 images. SignatureError if features are not finite.
        """
        return principal_directions(self.network, self.subnetwork.backbone.input_size)

    def describe(
        self,
        images: LabelledImages,
        classes: int,
        privacy: Privacy | None = None,
        noise: np.random.Generator | None = None,
        batch: int = BATCH,
    ) -> TaskSignature:
        """The signature of a task's training images; with `privacy`, a private one.

        A private signature is (epsilon, delta)-differentially private for one image of the device,
        added or removed: its means and its counts together, all classes at once, whatever probe the
        server made. That is the guarantee of one signature: another one of the same images spends as
        much again. It covers neither how many classes there are, nor the mask and accuracies that are
        given back later. Half precision rounds what is noised already, which costs nothing.

        `batch` images are in memory at a time. `noise` is for simulations alone: without it, the noise
        comes from the operating system's entropy, and from no seed that anybody knows.
        """
        if privacy is None:
            sums = ClassSums(classes, len(self.center))
            everything = torch.arange(len(images))
            for part, batch_rows in features_by_batch(self.network, images, everything, batch):
                sums.add(batch_rows.numpy(), images.labels[part].numpy())
            return sums.signature(self.digest)
        rows = all_features(self.network, images, batch=batch).numpy()
        labels = images.labels.numpy()
        size = self.subnetwork.backbone.input_size
        whole = batch == BATCH
        directions = self.directions if whole else principal_directions(self.network, size, batch)
        with np.errstate(invalid="ignore"):  # infinite features, which add nothing to what is released
            centred = (rows.astype(np.float64) - self.center) @ directions.T
        noise = noise or np.random.default_rng()
        return self._private(directions, *noised_sums(centred, labels, classes, privacy, noise))

    def _private(self, directions: np.ndarray, sums: np.ndarray, counts: np.ndarray) -> TaskSignature:
        """The signature of noised sums (K, d): means that lie where these point, all equally far."""
        lengths = np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
        means = self.center + private_length(self.center) * (sums / lengths) @ directions
        return TaskSignature(self.digest, _half(means), counts)

    def check(self, signature: TaskSignature) -> None:
        """Raise MismatchError or SignatureError unless the signature was made with this probe."""
        if signature.probe != self.digest:
            raise MismatchError(
                f"the signature was made with probe {signature.probe[:12]}, this library's is "
                f"{self.digest[:12]}; fetch the probe and compute the signature again"
            )
        if signature.means.shape[1] != len(self.center):
            raise SignatureError(
                f"the signature is {signature.means.shape[1]} wide, the probe's features are "
                f"{len(self.center)}; compute it again"
            )


CENTER = "maskvote.center"
"""The name of the center among the probe's tensors."""


def signature_of(rows: np.ndarray, labels: np.ndarray, classes: int, probe: str) -> TaskSignature:
    """The signature of features (N, D) with labels int64 (N,) in [0, classes)."""
    sums = ClassSums(classes, rows.shape[1])
    sums.add(rows, labels)
    return sums.signature(probe)


class ClassSums:
    """Sums of features by class, taken in a batch at a time: a task's features need not fit in memory."""

    def __init__(self, classes: int, width: int) -> None:
        self._sums = np.zeros((classes, width))
        self._counts = np.zeros(classes, dtype=np.int64)

    def add(self, rows: np.ndarray, labels: np.ndarray) -> None:
        """Take in features (B, D) with labels int64 (B,)."""
        np.add.at(self._sums, labels, rows)
        self._counts += np.bincount(labels, minlength=len(self._counts))

    def signature(self, probe: str) -> TaskSignature:
        """The signature of all that was taken in."""
        means = self._sums / np.maximum(self._counts, 1)[:, None]
        means = np.where(np.isfinite(means), means, np.nan)
        return TaskSignature(probe, _half(means), self._counts.astype(np.int32))


def private_length(center: np.ndarray) -> float:
    """How far from the center all class means of a private signature are.

    Their own lengths would be noise, and nearness goes by directions alone. Twice as long as the center
    itself, or 1, they are numbers of the usual size, and who compares signatures knows private ones by
    it: means of features are hardly ever so far away, and never all equally far.
    """
    return max(2 * float(np.linalg.norm(center.astype(np.float64))), 1.0)


def is_private(signature: TaskSignature, center: np.ndarray) -> bool:
    """Whether a signature has the form of a private one: all its means at that distance of the center.

    It says nothing of how much noise there is in it. Values that half precision clips do not have it.
    """
    lengths = np.linalg.norm(signature.means.astype(np.float64) - center, axis=1)
    return bool(np.allclose(lengths, private_length(center), rtol=LENGTH_TOLERANCE))


LENGTH_TOLERANCE = 2e-3
"""Relative to that distance: more than twice what half precision can change of it."""


def _half(means: np.ndarray) -> np.ndarray:
    """Means in float16, those beyond its range drawn to its limits; NaN stays."""
    limit = float(np.finfo(np.float16).max)
    return np.clip(means, -limit, limit).astype(np.float16)
