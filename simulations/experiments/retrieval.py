"""Who is near: measures, probe, and privacy, by the recall of the truly nearest tasks and by accuracy."""

from dataclasses import replace

from simulations.experiments.experiment import Experiment, Tasks
from simulations.way import Way

KINDS: dict[Tasks, str] = {
    "new": "of ten classes",
    "five": "of five classes",
    "shifted": "of ten classes in another domain",
}


def _apart(experiment: Experiment) -> tuple[Experiment, ...]:
    """The experiment once for each kind of tasks, the first under its own name.

    Pooled, tasks whose nearest are found would hide those whose are not.
    """
    return tuple(
        replace(
            experiment,
            name=experiment.name if kind == "new" else f"{experiment.name}-{kind}",
            question=experiment.question.format(f"tasks {words}"),
            tasks=(kind,),
        )
        for kind, words in KINDS.items()
    )


SIMILARITY = Experiment(
    name="similarity",
    question="Which measure finds the tasks that share classes, and does the accuracy follow?",
    ways=tuple(
        Way("SMSP", iterations=25, similarity=measure)
        for measure in ("class statistics", "plain cosines", "LEEP", "LogME", "GBC", "random")
    ),
    x="way",
    value="recall",
    line=lambda way: way.similarity,
    against=Way("SMSP", iterations=25),
)

PROBES = _apart(
    Experiment(
        name="probe",
        question="Does a small probe find the same neighbours as the whole backbone, for {}?",
        ways=(Way("neighbours"), Way("neighbours", probe="backbone")),
        x="way",
        value="recall",
        line=lambda way: way.probe,
        against=Way("neighbours", probe="backbone"),
    )
)

PRIVACIES = _apart(
    Experiment(
        name="privacy",
        question="What do private signatures cost, for {} with 20, 50 and 100 images a class? "
        "(Noise 0 is none.)",
        ways=tuple(
            Way("neighbours", epsilon=epsilon, images=images)
            for images in (20, 50, 100)
            for epsilon in (0.0, 1.0, 2.0, 8.0)
        ),
        x="epsilon",
        value="recall",
        line=lambda way: f"{way.images} images a class",
        against=Way("neighbours", images=50),
    )
)

PRIVACY_ACCURACY = Experiment(
    name="privacy-accuracy",
    question="Does a network suffer where its neighbours were found by private signatures, of 50 images "
    "a class? (Random neighbours tell what is at stake.)",
    ways=(
        *(Way("SMSP", iterations=25, epsilon=epsilon, images=50) for epsilon in (0.0, 1.0, 2.0, 8.0)),
        Way("SMSP", iterations=25, similarity="random", images=50),
    ),
    x="epsilon",
    line=lambda way: "random neighbours" if way.similarity == "random" else way.name,
    against=Way("SMSP", iterations=25, images=50),
)
