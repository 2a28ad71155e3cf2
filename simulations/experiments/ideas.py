"""Other ways to vote: what might do better than the papers."""

from simulations.experiments.experiment import Experiment
from simulations.way import Way

IDEAS = Experiment(
    name="ideas",
    question="Does another vote beat SMSP: with the backbone's importance as a prior, with ranks of a "
    "Taylor pass, with all tasks smoothly weighted, with keep ratios per layer by votes, or exploring?",
    ways=tuple(
        Way(mask, iterations=25)
        for mask in (
            "SMSP",
            "SMSP and importance",
            "SMSP and Taylor",
            "SMSP smoothed",
            "SMSP over all groups",
            "SMSP exploring",
        )
    ),
    x="way",
    against=Way("SMSP", iterations=25),
)
