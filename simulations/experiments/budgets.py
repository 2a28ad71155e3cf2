"""How small the network may be."""

from simulations.experiments.experiment import Experiment
from simulations.way import Healing, Way

WAYS: tuple[tuple[str, Healing], ...] = (
    ("SMSP", "library"),
    ("L1", "library"),
    ("SMSP", "none"),
    ("L1", "none"),
    ("random", "none"),
)

KEEP_RATIO = Experiment(
    name="keep-ratio",
    question="How do the ways compare as fewer units are kept?",
    ways=tuple(
        Way(mask, keep_ratio=ratio, iterations=25, healing=healing)
        for ratio in (0.5, 0.25, 0.1, 0.05)
        for mask, healing in WAYS
    ),
    x="keep_ratio",
    against=Way("SMSP", iterations=25),
)
