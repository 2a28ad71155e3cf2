"""What the library has to be: how large, and how many of its tasks vote."""

from dataclasses import replace

from simulations.experiments.experiment import Experiment
from simulations.way import Way

LIBRARY_SIZE = Experiment(
    name="library-size",
    question="What does a larger library bring, with healing and without?",
    ways=(
        *(Way("SMSP", iterations=25, entries=size) for size in (0, 5, 20, 60, 200)),
        *(Way("MVP one-shot", iterations=25, entries=size) for size in (5, 20, 60, 200)),
        Way("SMSP", iterations=25, entries=0, healing="empty"),
        *(Way("SMSP", iterations=25, entries=size, healing="library") for size in (5, 20, 60, 200)),
    ),
    x="entries",
    line=lambda way: way.mask if way.healing == "none" else f"{way.mask} healed",
    against=Way("SMSP", iterations=25, entries=0),
)

GROWTH = Experiment(
    name="growth",
    question="Does a library of contributions alone become useful, and what does the part of their masks "
    "add that devices found themselves (grown) to what they had been sent (echoed)?",
    ways=(
        Way("SMSP", iterations=25, entries=0),
        *(
            Way("SMSP", iterations=25, entries=size, library=kind)
            for kind in ("seeded", "grown", "echoed")
            for size in (5, 20, 60, 200)
        ),
    ),
    x="entries",
    line=lambda way: f"{way.name} of {way.library} tasks",
    against=Way("SMSP", iterations=25, entries=0),
)

NEIGHBOURS = Experiment(
    name="neighbours",
    question="How many tasks should vote?",
    ways=(
        *(Way("SMSP", iterations=25, neighbours=count) for count in (1, 3, 5, 10, 20, 60)),
        *(
            Way("SMSP", iterations=25, neighbours=count, healing="library")
            for count in (3, 5, 10, 20, 60)
        ),
    ),
    x="neighbours",
    against=Way("SMSP", iterations=25),
)

TWIN = Way("twin", iterations=25)
"""The mask of a library task of the device's own classes, of other images."""

LIMITS = Experiment(
    name="limits",
    question="What could the best library come to? A twin is a library task of the device's very "
    "classes, of other images: no neighbour can be nearer. Its mask was found like the library's, or in "
    "300 iterations.",
    ways=(
        Way("SMSP", iterations=25),
        TWIN,
        replace(TWIN, seeding_iterations=300),
        Way("L1", iterations=25),
        Way("random", iterations=25),
        Way("dense", iterations=25),
    ),
    x="way",
    line=lambda way: f"twin {way.seeding_iterations}" if way.seeding_iterations else way.name,
    against=Way("L1", iterations=25),
)
