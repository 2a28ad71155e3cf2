"""Alternatives: the names of what a device could get without a library. Nothing here needs torch."""

from __future__ import annotations

ALTERNATIVES = (
    "random",
    "L1",
    "L2",
    "Taylor",
    "SNIP",
    "Torch-Pruning magnitude",
    "Torch-Pruning Taylor",
    "scratch",
    "dense",
    "linear probe",
    "iterative",
)
"""`simulations.baselines` makes each of them."""
