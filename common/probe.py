"""Probe: the small fixed network that signatures are computed with, and how it computes them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property, reduce

import numpy as np
import torch
from torch import nn

from common.backbone import weights_digest
from common.directions import principal_directions
from common.errors import MismatchError, SignatureError
from common.files import Data
from common.fitting import BATCH, features_by_batch
from common.images import LabelledImages
from common.privacy import Privacy, class_sums, noised
from common.signature import ClassSums, TaskSignature, half_precision, private_length
from common.structure import Structure
from common.subnetwork import SubNetwork


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
        server made. That is so whether the image trains or judges, where one image moves at most one
        into or out of those that train, as with every task that is loaded (see common/hold_out.py). It
        is the guarantee of one signature: another one of the same images spends as much again. It
        covers neither how many classes there are, nor whether each has images to train on, nor the mask
        and accuracies that are given back later. Half precision rounds what is noised already, which
        costs nothing.

        `batch` images and their features are in memory at a time. `noise` is for simulations alone:
        without it, the noise comes from the operating system's entropy, and from no seed that anybody
        knows.
        """
        batches = (
            (rows.numpy(), images.labels[part].numpy())
            for part, rows in features_by_batch(self.network, images, torch.arange(len(images)), batch)
        )
        if privacy is None:
            plain = ClassSums(classes, len(self.center))
            for rows, labels in batches:
                plain.add(rows, labels)
            return plain.signature(self.digest)
        directions = self._directions_by(batch)
        sums = reduce(
            np.add,
            (class_sums(self._along(directions, rows), labels, classes) for rows, labels in batches),
        )
        return self._private(directions, *noised(sums, privacy, noise or np.random.default_rng()))

    def _directions_by(self, batch: int) -> np.ndarray:
        """The directions, found with so many images in memory at a time."""
        if batch == BATCH:
            return self.directions
        return principal_directions(self.network, self.subnetwork.backbone.input_size, batch)

    def _along(self, directions: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Features (B, D) as seen from the center along the directions: (B, d)."""
        with np.errstate(invalid="ignore"):  # infinite features, which add nothing to what is released
            return (rows.astype(np.float64) - self.center) @ directions.T

    def _private(self, directions: np.ndarray, sums: np.ndarray, counts: np.ndarray) -> TaskSignature:
        """The signature of noised sums (K, d): means that lie where these point, all equally far."""
        lengths = np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
        means = self.center + private_length(self.center) * (sums / lengths) @ directions
        return TaskSignature(self.digest, half_precision(means), counts)

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
