"""What lots would find: the recall of neighbours that are drawn without a look at any signature.

Neither classes nor their number are published with a run's records. Both follow from its library, as all
tasks are drawn the same for the same number of classes.
"""

from __future__ import annotations

from collections.abc import Sequence

from simulations.tasks import TaskChoice, draw_library, draw_new


def recall_by_lot(task: TaskChoice, library: Sequence[TaskChoice], count: int) -> float | None:
    """The recall that `count` of the library's tasks have in the mean, if every choice is as likely.

    As a share of what the nearest would have, in [0, 1]; None where no task is related at all.
    """
    related = sorted((task.relatedness(choice) for choice in library), reverse=True)
    best = sum(related[:count])
    return min(count, len(related)) * sum(related) / len(related) / best if best else None


def recalls_by_lot(
    library: Sequence[TaskChoice], tasks_a_seed: int, seeds: int, count: int
) -> dict[tuple[int, str], float]:
    """That of each of a run's new tasks of all kinds, by seed and task.

    Empty where the library is not as a run draws it, so that its new tasks cannot be known.
    """
    classes = _classes_of(library)
    if classes is None:
        return {}
    drawn = draw_new(classes, tasks_a_seed, seeds, ("new", "fresh", "five", "shifted"))
    found = {(seed, task.name): recall_by_lot(task, library, count) for seed, task in drawn}
    return {key: recall for key, recall in found.items() if recall is not None}


def _classes_of(library: Sequence[TaskChoice]) -> int | None:
    """How many classes the library was drawn from: the number that gives just these tasks."""
    least = 1 + max((max(task.classes) for task in library), default=-1)
    for classes in range(max(least, 20), 2 * least):
        if draw_library(classes, len(library)) == list(library):
            return classes
    return None
