"""What chooses the units: the vote, and all that a user would do instead."""

from dataclasses import replace

from simulations.experiments.experiment import Experiment
from simulations.way import Way

SMSP = Way("SMSP")
HEALED = Way("SMSP", healing="library")
DEFAULT = Way("SMSP and importance")
"""As a server votes by default."""

CRITERIA = Experiment(
    name="criteria",
    question="At a tenth of the units: does the vote of the nearest tasks beat what a device would do "
    "without a library, and does healing beat both?",
    ways=(
        HEALED,
        Way("L1", healing="library"),
        Way("L1", healing="empty"),
        SMSP,
        Way("L1"),
        DEFAULT,
        replace(DEFAULT, healing="library"),
        Way("random"),
        Way("linear probe", iterations=0),
        Way("Taylor"),
        Way("iterative", iterations=600),
        Way("small network"),
        Way("dense"),
        Way("farthest"),
        Way("everyone"),
        Way("SNIP"),
        Way("MVP"),
        Way("SMSP pruned"),
        Way("MVP one-shot"),
        Way("nearest alone"),
        Way("L2"),
        Way("Torch-Pruning magnitude"),
        Way("Torch-Pruning Taylor"),
        Way("scratch"),
        Way("iterative", iterations=60),
        Way("iterative", iterations=300),
    ),
    x="way",
    value="after",
    against=SMSP,
    line=lambda way: f"{way.name} {way.iterations}" if way.mask == "iterative" else way.name,
)

ITERATIONS = Experiment(
    name="iterations",
    question="How many iterations on the device does each way need?",
    ways=(
        Way("SMSP", iterations=100, healing="library"),
        *(Way(mask, iterations=100) for mask in ("SMSP", "L1", "random", "dense")),
    ),
    x="iterations",
    value="after",
    against=Way("SMSP", iterations=100),
    evaluate_at=(0, 10, 25, 50, 100),
)

SERVED = Way("served")
"""What a server sends that was not healed."""
SERVED_HEALED = Way("served", healing="served")

CONFIRMATION = Experiment(
    name="confirmation",
    question="On tasks by which nothing was chosen, with the defaults of server and device: what does a "
    "device get from a server, and what would it have come to alone?",
    ways=(
        SERVED_HEALED,
        SERVED,
        Way("L1"),
        Way("Taylor"),
        Way("Torch-Pruning magnitude"),
        Way("random"),
        Way("SMSP"),
        Way("linear probe", iterations=0),
        Way("iterative", iterations=600),
        Way("dense"),
    ),
    x="way",
    value="after",
    against=Way("iterative", iterations=600),
    line=CRITERIA.line,
    tasks=("fresh",),
)
