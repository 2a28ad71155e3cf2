"""Healing: what is left of the vote once the server has healed what it sends, and how long it has to."""

from simulations.experiments.experiment import Experiment
from simulations.way import Way

HEALING = Experiment(
    name="healing",
    question="Does it still matter which units are kept once a network is healed? Is one healed network, "
    "the same for everybody (L1 healed alone), all one needs? Do public images near a task heal better?",
    ways=(
        Way("SMSP", iterations=25),
        Way("L1", iterations=25),
        Way("random", iterations=25),
        Way("SMSP", iterations=25, healing="library"),
        Way("L1", iterations=25, healing="library"),
        Way("random", iterations=25, healing="library"),
        Way("L1", iterations=25, healing="empty"),
        Way("SMSP", iterations=25, healing="mask", healing_iterations=200),
        Way("L1", iterations=25, healing="mask", healing_iterations=200),
        Way("random", iterations=25, healing="mask", healing_iterations=200),
        Way("SMSP", iterations=25, healing="nearest", healing_iterations=200),
        Way("L1", iterations=25, healing="nearest", healing_iterations=200),
        Way("dense", iterations=25),
    ),
    x="way",
    against=Way("SMSP", iterations=25, healing="library"),
)

HEALING_LENGTH = Experiment(
    name="healing-length",
    question="How much healing does it take, and when does the choice of units stop to matter?",
    ways=tuple(
        Way(mask, iterations=25, healing="mask", healing_iterations=length)
        for length in (25, 100, 400)
        for mask in ("SMSP", "L1", "random")
    ),
    x="healing_iterations",
    value="at 0",
    against=Way("L1", iterations=25, healing="mask", healing_iterations=100),
)

BACKBONE_HEALING = Experiment(
    name="backbone-healing",
    question="How long should a server heal its backbone?",
    ways=tuple(
        Way("L1", iterations=25, healing="empty", healing_iterations=length)
        for length in (0, 250, 1000, 4000)
    ),
    x="healing_iterations",
    against=Way("L1", iterations=25, healing="empty", healing_iterations=1000),
)
