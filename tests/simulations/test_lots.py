"""What lots would find, against every choice counted and against a run's own tasks."""

from itertools import combinations

import numpy as np
import pytest

from simulations.lots import recall_by_lot, recalls_by_lot
from simulations.tasks import TaskChoice, draw_library, draw_new


def test_recall_by_lot_is_the_mean_over_every_choice_of_neighbours():
    task = TaskChoice("new", (0, 1, 2))
    library = [
        TaskChoice("near", (0, 1, 2)),
        TaskChoice("half", (0, 1, 2), "grey"),
        TaskChoice("some", (2, 3, 4)),
        TaskChoice("far", (5, 6, 7)),
    ]
    related = [task.relatedness(choice) for choice in library]
    assert related == pytest.approx([1, 0.5, 0.2, 0])
    each = [sum(chosen) / 1.5 for chosen in combinations(related, 2)]
    assert recall_by_lot(task, library, 2) == pytest.approx(np.mean(each))
    assert recall_by_lot(task, library, 9) == 1  # who asks all finds the nearest


def test_where_no_task_is_related_there_is_no_recall():
    assert recall_by_lot(TaskChoice("new", (0,)), [TaskChoice("far", (1,))], 1) is None
    assert recall_by_lot(TaskChoice("new", (0,)), [], 5) is None


def test_a_runs_new_tasks_follow_from_its_library():
    library = draw_library(80, 20)
    found = recalls_by_lot(library, tasks_a_seed=4, seeds=2, count=5)
    drawn = draw_new(80, 4, 2, ("new", "fresh", "five", "shifted"))
    assert len(drawn) == 32
    assert found == {(seed, task.name): recall_by_lot(task, library, 5) for seed, task in drawn}
    assert all(0 < recall < 1 for recall in found.values())


@pytest.mark.parametrize("library", [[], draw_library(80, 20)[::-1], [TaskChoice("a", (3, 9))]])
def test_of_another_library_nothing_is_guessed(library):
    assert recalls_by_lot(library, tasks_a_seed=4, seeds=2, count=5) == {}
