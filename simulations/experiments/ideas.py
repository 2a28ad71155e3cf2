"""Other ways to vote: what might do better than the papers."""

from simulations.experiments.experiment import Experiment
from simulations.way import Healing, Way

HEALINGS: tuple[Healing, ...] = ("none", "library")

IDEAS = Experiment(
    name="ideas",
    question="Does another vote beat SMSP: with the backbone's importance as a prior, with ranks of a "
    "Taylor pass, with all tasks smoothly weighted, with keep ratios per layer by votes, or exploring?",
    ways=tuple(
        Way(mask, iterations=25, healing=healing)
        for healing in HEALINGS
        for mask in (
            "SMSP",
            "SMSP and importance",
            "SMSP smoothed",
            "SMSP over all groups",
            "SMSP exploring",
            "SMSP and Taylor",
            "L1",
        )
    ),
    x="way",
    against=Way("SMSP", iterations=25),
)
