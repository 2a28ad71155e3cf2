"""Signatures and masks as devices would send them, drawn at random."""

import numpy as np

from common.mask import Mask
from common.probe import Probe
from common.signature import TaskSignature
from common.structure import Structure


def random_signature(probe: Probe, generator: np.random.Generator, classes: int = 3) -> TaskSignature:
    means = generator.normal(size=(classes, len(probe.center))).astype(np.float16)
    counts = generator.integers(1, 100, size=classes, dtype=np.int32)
    return TaskSignature(probe.digest, means, counts)


def random_mask(structure: Structure, generator: np.random.Generator, keep_ratio: float = 0.5) -> Mask:
    scores = {group.name: generator.random(group.units) for group in structure.groups}
    counts = [max(1, round(keep_ratio * units)) for units in structure.sizes]
    return Mask.keep_top(structure, scores, counts)
