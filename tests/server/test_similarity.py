"""Similarity: class statistics and LEEP, worked out by hand, against loops, and between their bounds."""

from math import isclose, log, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from common.errors import InputError
from common.signature import TaskSignature, is_private
from common.signature import signature_of as signature_of_examples
from server.similarity import ClassStatistics, LeepSimilarity, leep, predictions_by_means
from server.task_index import TaskIndex

NAN = float("nan")


def signature_of(*means) -> TaskSignature:
    rows = np.array(means, dtype=np.float16)
    return TaskSignature("probe", rows, np.ones(len(rows), dtype=np.int32))


def similarity(one: TaskSignature, other: TaskSignature, center=(0, 0)) -> float:
    statistics = ClassStatistics(np.array(center))
    statistics.add("one", one)
    return float(statistics.to(other)[1][0])


def by_loops(one: TaskSignature, other: TaskSignature, center: np.ndarray) -> float:
    """The definition, class by class, in float64."""

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        lengths = np.linalg.norm(a) * np.linalg.norm(b)
        return float(np.clip(a @ b / lengths, 0, 1)) if lengths > 0 else 0.0

    ours, theirs = (s.means.astype(np.float64) - center for s in (one, other))
    nearest_of_ours = [max(cosine(a, b) for b in theirs) ** 3 for a in ours]
    nearest_of_theirs = [max(cosine(a, b) for a in ours) ** 3 for b in theirs]
    return float((np.mean(nearest_of_ours) + np.mean(nearest_of_theirs)) / 2)


eighths = st.integers(-40, 40).map(lambda n: n / 8)
signatures = st.tuples(st.integers(2, 6), st.just(4)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=eighths).map(lambda rows: signature_of(*rows))
)
centers = arrays(np.float64, 4, elements=eighths)

EAST, NORTH, NORTH_EAST, SOUTH = (1, 0), (0, 1), (1, 1), (0, -1)


# Class statistics


def test_each_class_is_matched_with_the_nearest_of_the_other_task():
    """East finds east (1), north finds north-east (1/sqrt 2, cubed); so do east and north-east back."""
    expected = (1 + sqrt(1 / 8)) / 2
    assert isclose(
        similarity(signature_of(EAST, NORTH), signature_of(EAST, NORTH_EAST)), expected, abs_tol=1e-6
    )


def test_a_class_in_common_weighs_more_than_two_that_are_somewhat_alike():
    """One shared class of two comes to 1/2; two at cosines of 1/sqrt 3 do to less, and would to more."""
    task = signature_of((1, 0, 0, 0), (0, 1, 0, 0))
    shared = signature_of((1, 0, 0, 0), (0, 0, 1, 0))
    alike = signature_of((1, 0, 1, 1), (0, 1, 1, -1))  # at 1/sqrt 3, each with one of them
    assert isclose(similarity(task, shared, [0] * 4), 1 / 2, abs_tol=1e-6)
    assert isclose(similarity(task, alike, [0] * 4), 1 / sqrt(27), abs_tol=1e-6)
    plain = ClassStatistics(np.zeros(4), sharpness=1)
    for name, entry in (("shared", shared), ("alike", alike)):
        plain.add(name, entry)
    np.testing.assert_allclose(plain.to(task)[1], [1 / 2, 1 / sqrt(3)], atol=1e-6)


def test_both_ways_count_the_same_however_many_classes_each_task_has():
    """Two find 1 and 0; the other four find 1, 1, 1 and 0: halves of 1/2 and of 3/4."""
    few, many = signature_of(EAST, NORTH), signature_of(EAST, EAST, EAST, SOUTH)
    assert isclose(similarity(few, many), (1 / 2 + 3 / 4) / 2, abs_tol=1e-6)
    assert isclose(similarity(many, few), (1 / 2 + 3 / 4) / 2, abs_tol=1e-6)


def test_length_says_nothing_and_the_public_mean_is_taken_off_first():
    far = signature_of((5, 2), (3, 9))  # east and north of (3, 2), at distances 2 and 7
    assert isclose(
        similarity(far, signature_of((4, 2), (4, 3)), (3, 2)), (1 + sqrt(1 / 8)) / 2, abs_tol=1e-6
    )


def test_opposite_tasks_are_not_less_similar_than_unrelated_ones():
    assert similarity(signature_of(NORTH, NORTH), signature_of(SOUTH, SOUTH)) == 0
    assert similarity(signature_of(NORTH, NORTH), signature_of(EAST, EAST)) == 0


def test_a_class_at_the_public_mean_itself_is_like_nothing():
    assert similarity(signature_of((3, 2), (3, 2)), signature_of((4, 2), (9, 9)), (3, 2)) == 0


@settings(deadline=None)
@given(signatures, st.randoms(use_true_random=False))
def test_a_task_is_like_itself_in_any_order_of_its_classes(task, random):
    rows = [row for row in task.means.tolist() if any(row)] or [[1, 0, 0, 0]]
    rows *= 2
    shuffled = random.sample(rows, len(rows))
    assert isclose(similarity(signature_of(*rows), signature_of(*shuffled), [0] * 4), 1, abs_tol=1e-6)


@settings(deadline=None)
@given(signatures, signatures, centers)
def test_similarity_is_symmetric_and_lies_in_0_to_1(one, other, center):
    there, back = similarity(one, other, center), similarity(other, one, center)
    assert isclose(there, back, abs_tol=1e-6)
    assert 0 <= there <= 1
    assert 0 <= back <= 1


@settings(deadline=None)
@given(st.lists(signatures, min_size=1, max_size=8), signatures, centers)
def test_all_entries_at_once_are_what_the_definition_gives_one_by_one(library, task, center):
    statistics = ClassStatistics(center)
    for number, entry in enumerate(library):
        statistics.add(str(number), entry)
    entries, similarities = statistics.to(task)
    assert entries == [str(number) for number in range(len(library))]
    np.testing.assert_allclose(similarities, [by_loops(e, task, center) for e in library], atol=2e-5)


def test_half_precisions_largest_values_are_compared_without_overflow():
    largest = float(np.finfo(np.float16).max)
    assert isclose(similarity(signature_of((largest, 0), (0, largest)), signature_of(EAST, NORTH)), 1)


def test_a_library_that_outgrows_its_array_loses_nothing():
    generator = np.random.default_rng(0)
    statistics = ClassStatistics(np.zeros(3))
    tasks = [signature_of(*generator.normal(size=(9, 3))) for _ in range(300)]
    for number, task in enumerate(tasks):
        statistics.add(str(number), task)
    similarities = statistics.to(tasks[7])[1]
    np.testing.assert_allclose(
        similarities, [by_loops(t, tasks[7], np.zeros(3)) for t in tasks], atol=1e-5
    )


def test_an_empty_library_has_no_similarities():
    entries, similarities = ClassStatistics(np.zeros(2)).to(signature_of(EAST, NORTH))
    assert len(entries) == len(similarities) == 0


# LEEP


@st.composite
def labelled_predictions(draw):
    """Distributions (N, Z) that are exact in sums of thirty-seconds and more, and labels (N,)."""
    examples, sources = draw(st.integers(1, 12)), draw(st.integers(1, 4))
    raw = draw(arrays(np.float64, (examples, sources), elements=st.integers(0, 16).map(float)))
    raw[:, 0] += raw.sum(1) == 0
    labels = draw(arrays(np.int64, examples, elements=st.integers(0, 3)))
    return raw / raw.sum(1, keepdims=True), labels


def joint_of(source: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Empirical P(y, z), (C, Z)."""
    return np.array([source[labels == y].sum(0) / len(labels) for y in range(labels.max() + 1)])


def entropy(shares: np.ndarray) -> float:
    held = shares[shares > 0]
    return float(-(held * np.log(held)).sum())


def test_leep_of_three_examples_is_two_thirds_of_log_two_thirds():
    """P(y=0, z) = (1/3, 0) and P(y=1, z) = (1/6, 1/2), so P(y | z) = (2/3, 0) and (1/3, 1).

    The first example then expects 2/3, the second (1/3 + 1) / 2 = 2/3, and the third 1.
    """
    source = np.array([[1, 0], [0.5, 0.5], [0, 1]])
    assert isclose(leep(source, np.array([0, 1, 1])), 2 / 3 * log(2 / 3))


def test_perfect_predictions_give_0_whatever_the_source_calls_the_classes():
    labels = np.array([0, 1, 2, 1, 0])
    assert leep(np.eye(4)[[2, 3, 0, 3, 2]], labels) == 0
    two_source_classes_for_one = np.array([[0.3, 0.7, 0], [0.9, 0.1, 0], [0, 0, 1]])
    assert leep(two_source_classes_for_one, np.array([0, 0, 1])) == 0


def test_predictions_that_tell_nothing_give_minus_the_entropy_of_the_labels():
    labels = np.array([0, 0, 0, 1])
    assert isclose(leep(np.full((4, 5), 0.2), labels), -entropy(np.array([0.75, 0.25])))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=20))
def test_leep_of_hard_predictions_is_negative_conditional_entropy(pairs):
    """NCE = -H(Y | Z) = H(Z) - H(Y, Z) of the table that counts labels by predictions."""
    labels, predicted = np.array(pairs).T
    source = np.eye(4)[predicted]
    joint = joint_of(source, labels)
    nce = entropy(joint.sum(0)) - entropy(joint)
    assert isclose(leep(source, labels), nce, abs_tol=1e-9)


@settings(deadline=None)
@given(labelled_predictions())
def test_leep_lies_between_its_bounds_from_aggregates_and_is_never_positive(predictions):
    """Jensen both ways: all that a server could tell from class-summed predictions alone."""
    source, labels = predictions
    joint = joint_of(source, labels)  # (C, Z)
    marginal = joint.sum(0)
    given_source = np.divide(joint, marginal, out=np.zeros_like(joint), where=marginal > 0)
    held = joint > 0
    lower = (joint[held] * np.log(given_source[held])).sum()
    shares = joint.sum(1)
    present = shares > 0
    mean_prediction = joint[present] / shares[present][:, None]
    upper = (shares[present] * np.log((given_source[present] * mean_prediction).sum(1))).sum()
    value = leep(source, labels)
    assert lower - 1e-9 <= value <= upper + 1e-9
    assert value <= 0


@settings(deadline=None)
@given(labelled_predictions(), st.randoms(use_true_random=False))
def test_leep_knows_neither_the_order_of_examples_nor_the_names_of_classes(predictions, random):
    source, labels = predictions
    order = random.sample(range(len(labels)), len(labels))
    columns = random.sample(range(source.shape[1]), source.shape[1])
    names = np.array(random.sample(range(6), 4))
    renamed = leep(source[order][:, columns], names[labels[order]])
    assert isclose(renamed, leep(source, labels), abs_tol=1e-9)


@pytest.mark.parametrize(
    ("source", "labels", "says"),
    [
        (np.empty((0, 2)), [], "one row each"),
        ([[0.5, 0.5]], [0, 1], "one row each"),
        ([0.5, 0.5], [0, 1], "one row each"),
        ([[0.5, 0.5]], [[0]], "one row each"),
        ([[0.5, 0.4]], [0], "no distributions"),
        ([[1.5, -0.5]], [0], "no distributions"),
        ([[NAN, 1]], [0], "no distributions"),
        ([[float("inf"), 0]], [0], "no distributions"),
        ([[0.5, 0.5]], [-1], "label is -1"),
    ],
)
def test_what_is_no_prediction_for_every_label_is_refused(source, labels, says):
    with pytest.raises(InputError, match=says):
        leep(np.array(source), np.array(labels, dtype=np.int64))


# Predictions from a signature alone


def test_a_signature_predicts_the_class_whose_mean_points_the_same_way():
    """Cosines 1 and 0 over a temperature of 0.1 are logits 10 and 0."""
    predicted = predictions_by_means(
        np.array([[2.0, 1.0], [1.0, 4.0]]), np.array([[5.0, 1.0], [1.0, 3.0]]), np.array([1.0, 1.0])
    )
    sure = 1 / (1 + np.exp(-10))
    np.testing.assert_allclose(predicted, [[sure, 1 - sure], [1 - sure, sure]])


@settings(deadline=None)
@given(
    arrays(np.float64, (5, 3), elements=eighths),
    arrays(np.float16, (4, 3), elements=eighths),
    arrays(np.float64, 3, elements=eighths),
)
def test_predictions_by_means_are_distributions_that_leep_takes(features, means, center):
    predicted = predictions_by_means(features, means, center)
    np.testing.assert_allclose(predicted.sum(1), 1)
    assert leep(predicted, np.array([0, 1, 0, 1, 2])) <= 0


def test_leep_finds_the_task_whose_classes_are_the_same():
    """Three library tasks: the new task's own classes, half of them, and none."""
    generator = np.random.default_rng(0)
    prototypes = 3 * generator.normal(size=(8, 16))

    def examples(classes: list[int]) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(40) % len(classes)
        return prototypes[classes][labels] + generator.normal(size=(40, 16)), labels

    known = {"same": [0, 1, 2, 3], "half": [0, 1, 4, 5], "none": [4, 5, 6, 7]}
    own = examples(known["same"])
    task = signature_of_examples(*own, 4, "0" * 64)
    similarity = LeepSimilarity(np.zeros(16), lambda task: own)
    index = TaskIndex(similarity)
    for position, (name, classes) in enumerate(known.items()):
        index.add(name, signature_of_examples(*examples(classes), 4, "0" * 64), position)
    entries, values = similarity.to(task)
    assert list(entries) == ["same", "half", "none"]
    assert list(np.argsort(-values)) == [0, 1, 2]
    assert ((values > 0) & (values <= 1)).all()
    assert [neighbour.entry for neighbour in index.nearest(task, 2)] == ["same", "half"]


# Private signatures: all means lie in the span of the directions, here the first two axes of three,
# and twice as far from the center as that is long.

CENTER = np.array([0.0, 0.0, 1.0])
SPAN = np.eye(3)[:2]


def centred(*rows) -> TaskSignature:
    return signature_of(*(CENTER + row for row in rows))


OPEN = centred((0.3, 0, 0.4), (0, 0, 2))
"""Shares of its means within the span: 0.6 and none."""
ANOTHER_OPEN = centred((0, 2, 0), (0, 5, 12))
"""Shares 1 and 5/13."""
PRIVATE = centred((2, 0, 0), (0, 2, 0))
ANOTHER_PRIVATE = centred((1.2, 1.6, 0), (0, -2, 0))


def within(one: TaskSignature, other: TaskSignature) -> float:
    """How near two tasks are by what of them lies in the span."""
    ours, theirs = (signature_of(*((s.means - CENTER) * [1, 1, 0])) for s in (one, other))
    return by_loops(ours, theirs, np.zeros(3))


@pytest.mark.parametrize("task", [PRIVATE, ANOTHER_PRIVATE, OPEN, ANOTHER_OPEN])
def test_where_one_side_is_private_both_are_compared_within_the_span(task):
    library = [OPEN, PRIVATE, ANOTHER_OPEN, ANOTHER_PRIVATE]
    statistics = ClassStatistics(CENTER, lambda: SPAN)
    for number, entry in enumerate(library):
        statistics.add(str(number), entry)
    private = [is_private(entry, CENTER) for entry in library]
    assert private == [False, True, False, True]
    expected = [
        within(entry, task) if hidden or is_private(task, CENTER) else by_loops(entry, task, CENTER)
        for entry, hidden in zip(library, private, strict=True)
    ]
    for _ in range(2):
        np.testing.assert_allclose(statistics.to(task)[1], expected, atol=2e-3)


def test_entries_that_come_between_two_private_tasks_are_compared_within_the_span_too():
    statistics = ClassStatistics(CENTER, lambda: SPAN)
    for number, entry in enumerate([OPEN, ANOTHER_OPEN]):
        statistics.add(str(number), entry)
        assert statistics.to(PRIVATE)[1][-1] == pytest.approx(within(entry, PRIVATE), abs=2e-3)


def test_among_private_and_open_entries_of_one_task_none_looks_nearer():
    """Compared as they are, a private task would find the private entry first, whatever its classes."""
    inside = centred((1.2, 1.6, 0), (-1.2, 1.6, 0))
    outside = centred((0.6, 0.8, 1), (-0.6, 0.8, 1))
    task = centred((2, 0, 0), (-2, 0, 0))
    statistics = ClassStatistics(CENTER, lambda: SPAN)
    for name, entry in (("inside", inside), ("outside", outside)):
        statistics.add(name, entry)
    private, open_ = statistics.to(task)[1]
    assert isclose(private, open_, abs_tol=1e-3)
    as_they_are = ClassStatistics(CENTER)
    for name, entry in (("inside", inside), ("outside", outside)):
        as_they_are.add(name, entry)
    private, open_ = as_they_are.to(task)[1]
    assert private > 1.3 * open_


def test_no_directions_are_looked_for_where_no_signature_is_private():
    def never() -> np.ndarray:
        raise AssertionError("directions are computed")

    statistics = ClassStatistics(CENTER, never)
    statistics.add("one", OPEN)
    statistics.add("other", ANOTHER_OPEN)
    assert statistics.to(OPEN)[1][0] == pytest.approx(1)


@pytest.mark.parametrize("cosines", [1, 7, 64, 10**6])
def test_in_however_small_blocks_it_is_computed_the_similarities_are_the_same(monkeypatch, cosines):
    generator = np.random.default_rng(0)

    def signature(classes: int) -> TaskSignature:
        means = generator.normal(size=(classes, 8)).astype(np.float16)
        return TaskSignature("0" * 64, means, np.ones(classes, dtype=np.int32))

    similarity = ClassStatistics(np.zeros(8))
    for number in range(30):
        similarity.add(str(number), signature(int(generator.integers(2, 12))))
    task = signature(5)
    entries, whole = similarity.to(task)
    monkeypatch.setattr("server.similarity.BLOCK_COSINES", cosines)
    again, in_blocks = similarity.to(task)
    assert list(entries) == list(again)
    np.testing.assert_allclose(in_blocks, whole, rtol=1e-6)
