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
    cosines = [np.clip(unit(other) @ ours.T, 0, 1) for other in tasks]
    return np.array([((c.max(0) ** 3).mean() + (c.max(1) ** 3).mean()) / 2 for c in cosines])


@pytest.fixture(scope="module")
def ten_thousand() -> list[TaskSignature]:
    """Of 2 to 12 classes each."""
    generator = np.random.default_rng(0)
    return [random_task(generator, classes=2 + number % 11) for number in range(10_000)]


def test_none_of_ten_thousand_tasks_is_missed(ten_thousand, record_property):
    """The ten nearest are those of a comparison with every task, and in its order."""
    index = new_index()
    for number, task in enumerate(ten_thousand):
        index.add(str(number), task, number)
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
        index.add(str(number), task, number)
    found = index.nearest(ten_thousand[123], 3)
    assert found[0].entry == "123"
    assert found[0].similarity == pytest.approx(1, abs=1e-6)
    assert found[1].similarity < 0.9


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=12), st.integers(1, 15))
def test_equal_similarities_go_by_the_order_of_adding(kinds, count):
    """Tasks of three kinds, of which all of one kind differ in how many images they are of alone."""
    means = [random_task(np.random.default_rng(kind), classes=3).means for kind in range(3)]
    tasks = [
        TaskSignature("probe", means[kind], np.full(3, 1 + number, dtype=np.int32))
        for number, kind in enumerate(kinds)
    ]
    index = new_index()
    for number, task in enumerate(tasks):
        index.add(f"{number:02d}", task, number)
    task = TaskSignature("probe", means[0], np.ones(3, dtype=np.int32))
    found = index.nearest(task, count)
    expected = by_brute_force(tasks, task).round(6)
    order = sorted(range(len(kinds)), key=lambda number: (-expected[number], number))
    assert [int(neighbour.entry) for neighbour in found] == order[:count]


def test_a_task_that_came_time_and_again_has_one_ballot_its_newest_and_crowds_nobody_out():
    generator = np.random.default_rng(0)
    often, others = random_task(generator), [random_task(generator) for _ in range(5)]
    index = new_index()
    for number, task in enumerate(others):
        index.add(f"other {number}", task, number)
    for number in (12, 10, 14, 11, 13):  # restored entries come after newer ones
        index.add(f"often {number}", often, number)
    assert len(index) == 10
    found = [neighbour.entry for neighbour in index.nearest(often, 6)]
    assert found[0] == "often 14"
    assert set(found[1:]) == {f"other {number}" for number in range(5)}


def test_once_the_newest_of_a_task_is_removed_the_one_before_votes_until_it_is_back():
    index, task = new_index(), random_task(np.random.default_rng(0))

    def voting() -> list[str]:
        return [neighbour.entry for neighbour in index.nearest(task, 3)]

    for position, name in enumerate("abc"):
        index.add(name, task, position)
    index.remove("c")
    assert voting() == ["b"]
    index.remove("a")
    assert voting() == ["b"]
    index.remove("b")
    assert voting() == []
    index.add("a", task, 0)
    assert voting() == ["a"]
    index.add("c", task, 2)
    index.add("b", task, 1)
    assert voting() == ["c"]


def test_an_entry_that_is_added_again_stays_as_it_was():
    generator = np.random.default_rng(0)
    first, second = random_task(generator), random_task(generator)
    index = new_index()
    index.add("task", first, 1)
    index.add("task", second, 2)
    assert len(index) == 1
    assert index.nearest(first, 5)[0].similarity == pytest.approx(1, abs=1e-6)


def test_fewer_entries_than_asked_for_are_all_given_and_of_none_nobody():
    generator = np.random.default_rng(0)
    index = new_index()
    task = random_task(generator)
    assert index.nearest(task, 3) == ()
    index.add("one", random_task(generator), 1)
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
            index.add(f"{thread}-{number}", task, number)
            if number % 10 == 0:
                found.append(index.nearest(task, 1)[0].entry == f"{thread}-{number}")
        return found

    with ThreadPoolExecutor(8) as pool:
        assert all(all(found) for found in pool.map(add_and_find, range(8)))
    assert len(index) == 2000
    everyone = index.nearest(random_signature(probe, np.random.default_rng(99)), 2000)
    assert len({neighbour.entry for neighbour in everyone}) == 2000


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.sampled_from("ra"), st.integers(0, 14)), max_size=40), st.integers(1, 20))
def test_removed_entries_are_as_if_they_were_not_there_until_they_are_added(steps, count):
    """Against an index of the others alone, whatever was added and removed in which order.

    Of fifteen entries every three are of one task.
    """
    tasks = [random_task(np.random.default_rng(number), classes=3) for number in range(5)]
    index, there = new_index(), set()
    for step, number in steps:
        if step == "r":
            index.remove(str(number))
            there.discard(number)
        else:
            index.add(str(number), tasks[number % 5], number)
            there.add(number)
    assert {number for number in range(15) if str(number) in index} == there
    others = new_index()
    for number in sorted(there):
        others.add(str(number), tasks[number % 5], number)
    task = random_task(np.random.default_rng(99))
    found, expected = index.nearest(task, count), others.nearest(task, count)
    assert [neighbour.entry for neighbour in found] == [neighbour.entry for neighbour in expected]
    assert {int(neighbour.entry) for neighbour in index.nearest(task, 15)} == {
        max(number for number in there if number % 5 == kind) for kind in {number % 5 for number in there}
    }
    np.testing.assert_allclose(
        [neighbour.similarity for neighbour in found], [neighbour.similarity for neighbour in expected],
        atol=1e-6,
    )  # fmt: skip
    assert len(index) == len(others)
