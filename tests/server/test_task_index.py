"""The task index: exact over ten thousand tasks, in a fixed order, and whole under many threads."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_tasks import random_signature

from common.errors import InputError
from common.signature import TaskSignature
from server.similarity import ClassStatistics
from server.task_index import TaskIndex

WIDTH = 16


def random_task(generator: np.random.Generator, classes: int = 10, width: int = WIDTH) -> TaskSignature:
    means = generator.normal(size=(classes, width)).astype(np.float16)
    return TaskSignature("probe", means, np.ones(classes, dtype=np.int32))


def new_index(width: int = WIDTH) -> TaskIndex:
    return TaskIndex(ClassStatistics(np.zeros(width)))


def by_brute_force(tasks: list[TaskSignature], task: TaskSignature) -> np.ndarray:
    """Similarity to each, one at a time, in float64."""

    def unit(signature: TaskSignature) -> np.ndarray:
        rows = signature.means.astype(np.float64)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    ours = unit(task)
    cosines = [unit(other) @ ours.T for other in tasks]
    return np.clip([(c.max(0).mean() + c.max(1).mean()) / 2 for c in cosines], 0, 1)


@pytest.fixture(scope="module")
def ten_thousand() -> list[TaskSignature]:
    """Of 2 to 12 classes each."""
    generator = np.random.default_rng(0)
    return [random_task(generator, classes=2 + number % 11) for number in range(10_000)]


def test_none_of_ten_thousand_tasks_is_missed(ten_thousand, record_property):
    """The ten nearest are those of a comparison with every task, and in its order."""
    index = new_index()
    for number, task in enumerate(ten_thousand):
        index.add(str(number), task)
    assert len(index) == 10_000
    generator = np.random.default_rng(1)
    seconds = []
    for classes in (2, 10, 30):
        task = random_task(generator, classes)
        began = time.perf_counter()
        found = index.nearest(task, 10)
        seconds.append(time.perf_counter() - began)
        expected = by_brute_force(ten_thousand, task)
        best = np.argsort(-expected, kind="stable")[:10]
        assert [int(neighbour.entry) for neighbour in found] == best.tolist()
        np.testing.assert_allclose([n.similarity for n in found], expected[best], atol=1e-6)
    record_property("seconds_per_search", seconds)


def test_a_task_finds_itself_first(ten_thousand):
    index = new_index()
    for number, task in enumerate(ten_thousand[:500]):
        index.add(str(number), task)
    found = index.nearest(ten_thousand[123], 3)
    assert found[0].entry == "123"
    assert found[0].similarity == pytest.approx(1, abs=1e-6)
    assert found[1].similarity < 0.9


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=12), st.integers(1, 15))
def test_equal_similarities_go_by_the_order_of_adding(kinds, count):
    """Entries of three kinds, of which all of one kind are exactly alike."""
    tasks = [random_task(np.random.default_rng(kind), classes=3) for kind in range(3)]
    index = new_index()
    for number, kind in enumerate(kinds):
        index.add(f"{number:02d}", tasks[kind])
    found = index.nearest(tasks[0], count)
    expected = by_brute_force([tasks[kind] for kind in kinds], tasks[0]).round(6)
    order = sorted(range(len(kinds)), key=lambda number: (-expected[number], number))
    assert [int(neighbour.entry) for neighbour in found] == order[:count]


def test_an_entry_that_is_added_again_stays_as_it_was():
    generator = np.random.default_rng(0)
    first, second = random_task(generator), random_task(generator)
    index = new_index()
    index.add("task", first)
    index.add("task", second)
    assert len(index) == 1
    assert index.nearest(first, 5)[0].similarity == pytest.approx(1, abs=1e-6)


def test_fewer_entries_than_asked_for_are_all_given_and_of_none_nobody():
    generator = np.random.default_rng(0)
    index = new_index()
    task = random_task(generator)
    assert index.nearest(task, 3) == ()
    index.add("one", random_task(generator))
    assert [neighbour.entry for neighbour in index.nearest(task, 3)] == ["one"]


@pytest.mark.parametrize("count", [0, -1])
def test_fewer_than_one_neighbour_is_refused(count):
    with pytest.raises(InputError, match="at least 1"):
        new_index().nearest(random_task(np.random.default_rng(0)), count)


def test_threads_that_add_and_search_at_once_lose_nothing_and_see_whole_tasks(probe):
    """Each of 8 threads adds 250 tasks and looks for each as soon as it is in, and finds it first."""
    index = TaskIndex(ClassStatistics(probe.center))

    def add_and_find(thread: int) -> list[bool]:
        generator = np.random.default_rng(thread)
        found = []
        for number in range(250):
            task = random_signature(probe, generator, classes=2 + number % 5)
            index.add(f"{thread}-{number}", task)
            if number % 10 == 0:
                found.append(index.nearest(task, 1)[0].entry == f"{thread}-{number}")
        return found

    with ThreadPoolExecutor(8) as pool:
        assert all(all(found) for found in pool.map(add_and_find, range(8)))
    assert len(index) == 2000
    everyone = index.nearest(random_signature(probe, np.random.default_rng(99)), 2000)
    assert len({neighbour.entry for neighbour in everyone}) == 2000


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.sampled_from("xia"), st.integers(0, 14)), max_size=40), st.integers(1, 20))
def test_excluded_entries_are_as_if_they_were_not_there_until_they_are_included(steps, count):
    """Against an index of the others alone, whatever was excluded, included and added in which order."""
    tasks = [random_task(np.random.default_rng(number), classes=3) for number in range(15)]
    index, added, excluded = new_index(), [], set()
    for step, number in steps:
        if step == "x":
            index.exclude(str(number))
            excluded.add(number)
        elif step == "i":
            index.include(str(number))
            excluded.discard(number)
        else:
            index.add(str(number), tasks[number])
            added += [number] * (number not in added)
    others = new_index()
    for number in added:
        if number not in excluded:
            others.add(str(number), tasks[number])
    task = random_task(np.random.default_rng(99))
    found, expected = index.nearest(task, count), others.nearest(task, count)
    assert [neighbour.entry for neighbour in found] == [neighbour.entry for neighbour in expected]
    np.testing.assert_allclose(
        [neighbour.similarity for neighbour in found], [neighbour.similarity for neighbour in expected],
        atol=1e-6,
    )  # fmt: skip
    assert len(index) == len(others)
