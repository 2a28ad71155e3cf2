"""The experiments: the papers' findings, what a user would do instead, and what we add."""

from simulations.experiments.budgets import KEEP_RATIO
from simulations.experiments.criteria import CONFIRMATION, CRITERIA, ITERATIONS
from simulations.experiments.experiment import Experiment
from simulations.experiments.healing import BACKBONE_HEALING, HEALING, HEALING_LENGTH
from simulations.experiments.ideas import IDEAS
from simulations.experiments.libraries import GROWTH, LIBRARY_SIZE, LIMITS, NEIGHBOURS
from simulations.experiments.retrieval import PRIVACIES, PRIVACY_ACCURACY, PROBES, SIMILARITY

__all__ = ["EXPERIMENTS", "Experiment"]

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        CONFIRMATION,
        CRITERIA,
        ITERATIONS,
        HEALING,
        HEALING_LENGTH,
        BACKBONE_HEALING,
        KEEP_RATIO,
        LIBRARY_SIZE,
        LIMITS,
        GROWTH,
        NEIGHBOURS,
        SIMILARITY,
        *PROBES,
        *PRIVACIES,
        PRIVACY_ACCURACY,
        IDEAS,
    )
}
"""Name on the command line -> experiment."""
