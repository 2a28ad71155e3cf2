import hashlib
import tracemalloc
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toys import Example, example, images_of, random_mask

from common.errors import InputError, MismatchError, SignatureError
from common.fitting import all_features
from common.privacy import DIRECTIONS, LARGEST_EPSILON, LEAST_EPSILON, Privacy
from common.probe import Probe
from common.signature import MAX_CLASSES, TaskSignature, is_private, private_length, signature_of
from common.subnetwork import SubNetwork

PROBE = hashlib.sha256(b"probe").hexdigest()


def signature(means, counts, probe: str = PROBE) -> TaskSignature:
    return TaskSignature(probe, np.asarray(means, np.float16), np.asarray(counts, np.int32))


# -- by hand ---------------------------------------------------------------------------------------


def test_a_signature_is_the_mean_feature_and_the_count_of_every_class():
    rows = np.array([[1.0, 2.0], [3.0, 4.0], [10.0, 0.0], [5.0, 6.0]])
    found = signature_of(rows, np.array([0, 0, 1, 0]), 2, PROBE)
    assert found.means.tolist() == [[3.0, 4.0], [10.0, 0.0]]
    assert found.counts.tolist() == [3, 1]
    assert found.probe == PROBE
    assert (found.classes, found.images) == (2, 4)


@given(order=st.permutations(range(12)))
def test_the_order_of_images_is_irrelevant(order):
    rows = np.random.default_rng(0).normal(size=(12, 5))
    labels = np.arange(12) % 3
    turned = signature_of(rows[list(order)], labels[list(order)], 3, PROBE)
    assert turned == signature_of(rows, labels, 3, PROBE)
    assert turned.digest == signature_of(rows, labels, 3, PROBE).digest


def test_means_beyond_half_precision_are_drawn_to_its_limits():
    rows = np.array([[1e6, -1e6, 1e-9], [0.0, 0.0, 0.0]])
    found = signature_of(rows, np.array([0, 1]), 2, PROBE)
    assert found.means[0].tolist() == [65504.0, -65504.0, 0.0]


def test_features_that_are_not_numbers_are_refused():
    """Infinite ones as well: a clipped infinity would pass for a value."""
    for bad in (np.nan, np.inf, -np.inf):
        rows = np.array([[1.0, bad], [0.0, 0.0]])
        with pytest.raises(SignatureError):
            signature_of(rows, np.array([0, 1]), 2, PROBE)


def test_a_class_without_images_is_refused():
    with pytest.raises(SignatureError, match="a class of 0 images"):
        signature_of(np.ones((2, 3)), np.array([0, 0]), 2, PROBE)


@pytest.mark.parametrize(
    ("means", "counts", "message"),
    [
        (np.zeros((2, 3), np.float32), [1, 1], r"means are float32 \(2, 3\), not float16"),
        (np.zeros(3, np.float16), [1, 1], r"means are float16 \(3,\)"),
        (np.zeros((2, 3), np.float16), [1, 1, 1], r"counts are int32 \(3,\)"),
        (np.zeros((1, 3), np.float16), [1], "1 classes; from 2 to 1000"),
        (np.zeros((MAX_CLASSES + 1, 1), np.float16), [1] * (MAX_CLASSES + 1), "1001 classes"),
        (np.zeros((2, 3), np.float16), [1, 0], "a class of 0 images"),
        (np.zeros((2, 3), np.float16), [1, -5], "a class of -5 images"),
        (np.array([[np.nan, 0], [np.inf, 0]], np.float16), [1, 1], "2 means are NaN or infinite"),
    ],
)
def test_an_invalid_signature_cannot_exist(means, counts, message):
    with pytest.raises(SignatureError, match=message):
        TaskSignature(PROBE, means, np.array(counts, np.int32))


def test_every_rule_that_is_broken_is_told_at_once():
    with pytest.raises(SignatureError, match=r"means are float64 .*; counts are int64"):
        TaskSignature(PROBE, np.zeros((2, 3)), np.array([1, 1], np.int64))


def test_a_signature_cannot_be_changed_neither_itself_nor_through_its_arrays():
    means, counts = np.zeros((2, 3), np.float16), np.ones(2, np.int32)
    found = TaskSignature(PROBE, means, counts)
    means[0, 0] = 5
    assert found.means[0, 0] == 0
    with pytest.raises(ValueError, match="read-only"):
        found.means[0, 0] = 1
    with pytest.raises(ValueError, match="read-only"):
        found.counts[0] = 9


def test_signatures_are_equal_if_probe_shape_means_and_counts_are():
    base = signature([[1, 2], [3, 4]], [5, 6])
    assert base == signature([[1, 2], [3, 4]], [5, 6])
    assert hash(base) == hash(signature([[1, 2], [3, 4]], [5, 6]))
    others = [
        signature([[1, 2], [3, 5]], [5, 6]),
        signature([[1, 2], [3, 4]], [5, 7]),
        signature([[3, 4], [1, 2]], [6, 5]),
        signature([[1, 2], [3, 4]], [5, 6], probe="another"),
    ]
    assert len({base.digest, *(other.digest for other in others)}) == 5


def test_the_digest_does_not_depend_on_the_layout_in_memory():
    means = np.asfortranarray(np.arange(6, dtype=np.float16).reshape(2, 3))
    turned = TaskSignature(PROBE, means, np.array([1, 1, 1, 1], np.int32)[::2])
    assert turned.digest == signature(np.arange(6).reshape(2, 3), [1, 1]).digest


# -- the probe -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ours() -> Example:
    return example("test_resnet", 32)


@pytest.fixture(scope="module")
def small(ours) -> Probe:
    mask = random_mask(ours.structure, 0.3, kinds=["internal"])
    return Probe(SubNetwork.of(ours.backbone, ours.weights, mask), np.linspace(-1, 1, 96))


def test_a_probe_describes_a_task_by_its_own_features(ours, small):
    images = images_of(ours.backbone, per_class=4)
    found = small.describe(images, 3)
    rows = all_features(small.network, images).numpy()
    assert found.probe == small.digest
    assert found.counts.tolist() == [4, 4, 4]
    for label in range(3):
        expected = rows[images.labels.numpy() == label].mean(0)
        assert found.means[label] == pytest.approx(expected, rel=1e-3, abs=1e-3)
    small.check(found)


def test_a_probe_is_the_same_after_a_journey_as_bytes(ours, small):
    """Its digest, its center, and what it says of a task."""
    again = Probe.from_bytes(small.to_bytes(), ours.structure)
    assert again.digest == small.digest
    assert np.array_equal(again.center, small.center)
    images = images_of(ours.backbone, per_class=2)
    assert again.describe(images, 3) == small.describe(images, 3)


def test_using_a_probe_changes_nothing_of_it(ours, small):
    """Neither the bytes that it lies in, nor its digest; and its network cannot be trained by mistake."""
    received = bytearray(small.to_bytes())
    sent = bytes(received)
    probe = Probe.from_bytes(received, ours.structure)
    probe.describe(images_of(ours.backbone, per_class=2), 3)
    assert received == sent
    assert Probe.from_bytes(received, ours.structure).digest == small.digest
    assert not any(parameter.requires_grad for parameter in probe.network.parameters())


def test_a_probes_digest_sees_its_mask_its_tensors_and_its_center(ours, small):
    weights = {name: tensor.clone() for name, tensor in small.subnetwork.weights.items()}
    weights["bn1.bias"][0] += 1
    other_mask = random_mask(ours.structure, 0.3, seed=1, kinds=["internal"])
    others = [
        Probe(small.subnetwork, small.center + 1),
        Probe(SubNetwork(ours.backbone, small.subnetwork.mask, weights), small.center),
        Probe(SubNetwork.of(ours.backbone, ours.weights, other_mask), small.center),
    ]
    assert len({small.digest, *(probe.digest for probe in others)}) == 4


def test_a_signature_of_another_probe_or_width_is_refused(small):
    with pytest.raises(MismatchError, match=f"made with probe {PROBE[:12]}"):
        small.check(signature(np.zeros((2, 96)), [1, 1]))
    with pytest.raises(SignatureError, match="95 wide, the probe's features are 96"):
        small.check(signature(np.zeros((2, 95)), [1, 1], probe=small.digest))


@pytest.mark.parametrize(
    "center", [np.zeros((1, 96)), np.full(96, np.nan), np.full(96, np.inf), np.float32(1)]
)
def test_a_center_that_is_no_finite_vector_is_refused(small, center):
    with pytest.raises(SignatureError, match="center"):
        Probe(small.subnetwork, center)


def test_a_subnetwork_is_not_taken_for_a_probe(ours, small):
    with pytest.raises(SignatureError, match="no probe"):
        Probe.from_bytes(small.subnetwork.to_bytes(), ours.structure)


def test_a_damaged_probe_or_one_of_another_structure_is_refused(ours, small):
    data = bytes(small.to_bytes())
    with pytest.raises(InputError):
        Probe.from_bytes(data[:-1], ours.structure)
    with pytest.raises(MismatchError):
        Probe.from_bytes(data, ours.structure.only(["internal"]))


def test_a_probe_that_gives_no_numbers_is_told_when_it_is_used(ours, small):
    weights = {name: tensor.clone() for name, tensor in small.subnetwork.weights.items()}
    weights["layer4.0.bn2.bias"][:] = torch.nan
    broken = Probe(SubNetwork(ours.backbone, small.subnetwork.mask, weights), small.center)
    with pytest.raises(SignatureError, match="NaN"):
        broken.describe(images_of(ours.backbone, per_class=2), 3)


# -- private signatures ----------------------------------------------------------------------------


def test_without_privacy_a_signature_is_what_the_features_give_to_the_last_bit(ours, small):
    images = images_of(ours.backbone, per_class=4)
    rows = all_features(small.network, images).numpy()
    plain = signature_of(rows, images.labels.numpy(), 3, small.digest)
    assert small.describe(images, 3) == plain
    assert small.describe(images, 3, None, np.random.default_rng(0)).digest == plain.digest
    assert not is_private(plain, small.center)


def test_a_private_signature_lies_along_the_probes_directions_twice_as_far_as_the_center(ours, small):
    found = small.describe(images_of(ours.backbone, per_class=4), 3, Privacy(1))
    small.check(found)
    rows = found.means.astype(np.float64) - small.center
    length = 2 * np.linalg.norm(small.center)
    assert private_length(small.center) == pytest.approx(length)
    assert np.linalg.norm(rows, axis=1) == pytest.approx([length] * 3, rel=1e-3)
    assert np.linalg.norm(rows @ small.directions.T, axis=1) == pytest.approx([length] * 3, rel=1e-3)
    assert is_private(found, small.center)


def test_with_next_to_no_noise_it_points_where_the_images_do(ours, small):
    """Where the sum of the images' features along the directions does, each of them of length 1."""
    images = images_of(ours.backbone, per_class=30)
    found = small.describe(images, 3, Privacy(LARGEST_EPSILON, 0.5), np.random.default_rng(0))
    rows = (all_features(small.network, images).double().numpy() - small.center) @ small.directions.T
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    for label in range(3):
        expected = rows[images.labels.numpy() == label].sum(0) @ small.directions
        told = found.means[label].astype(np.float64) - small.center
        cosine = expected @ told / np.linalg.norm(expected) / np.linalg.norm(told)
        assert cosine == pytest.approx(1, abs=1e-3)
    assert np.abs(found.counts - 30).max() <= 1


@dataclass
class DrawnImages:
    """Any number of images, each drawn when it is asked for."""

    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: torch.Tensor) -> torch.Tensor:
        return indices.float().sin().view(-1, 1, 1, 1) * torch.linspace(-1, 1, 3072).view(3, 32, 32)


@pytest.mark.parametrize("privacy", [None, Privacy(8)])
def test_ten_times_the_images_take_no_more_memory_to_describe(small, privacy):
    """What numpy holds at most, with the directions found before."""
    assert len(small.directions) == DIRECTIONS
    peaks = []
    for count in (150, 1500):
        images = DrawnImages(torch.arange(count) % 3)
        small.describe(images, 3, privacy)
        tracemalloc.start()
        small.describe(images, 3, privacy)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


def test_two_private_signatures_differ_and_follow_no_seed_of_a_run(ours, small):
    images = images_of(ours.backbone, per_class=4)
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        found.append(small.describe(images, 3, Privacy(8)))
    assert not (found[0].means == found[1].means).all(axis=1).any()
    drawn = [small.describe(images, 3, Privacy(8), np.random.default_rng(0)) for _ in range(2)]
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("epsilon", [LEAST_EPSILON, 0.1, 1, 8, LARGEST_EPSILON])
@pytest.mark.parametrize("classes", [3, 5])
def test_a_private_signature_is_one_at_any_epsilon_and_in_classes_without_images(
    ours, small, epsilon, classes
):
    found = small.describe(images_of(ours.backbone, per_class=1), classes, Privacy(epsilon))
    assert found.classes == classes
    assert is_private(found, small.center)


@pytest.mark.parametrize("scale", [0, 1e-6, 1, 3e3])
def test_whatever_the_probes_center_a_private_signature_is_known_as_one(ours, small, scale):
    probe = Probe(small.subnetwork, scale * small.center)
    images = images_of(ours.backbone, per_class=2)
    assert is_private(probe.describe(images, 3, Privacy(8)), probe.center)
    assert not is_private(probe.describe(images, 3), probe.center)


def test_a_probe_that_gives_no_numbers_releases_nothing(ours, small):
    weights = {name: tensor.clone() for name, tensor in small.subnetwork.weights.items()}
    weights["layer4.0.bn2.bias"][:] = torch.nan
    broken = Probe(SubNetwork(ours.backbone, small.subnetwork.mask, weights), small.center)
    with pytest.raises(SignatureError, match="NaN or infinite"):
        broken.describe(images_of(ours.backbone, per_class=2), 3, Privacy(8))
