"""Which images judge, where the data says nothing of it: a fifth, and no image decides for another."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from toys import example

from common.errors import TaskDataError
from common.hold_out import HELD_OUT_SHARE, judging
from common.privacy import SENSITIVITY, class_sums
from common.task_data import load_folder
from common.torchvision_data import load_torchvision

SIZE = 32
ADDED = ("0000.png", "0100.png", "1a.png", "5.png", "zz.png")
"""Names before, between and after those of `draw`."""


@pytest.fixture(scope="module")
def backbone():
    return example("test_resnet", SIZE).backbone


# -- the rule --------------------------------------------------------------------------------------


def test_an_image_judges_by_the_hash_of_its_key():
    """sha256 gives hello 2cf2..., 0.18 of the largest; abc ba78..., 0.73; nothing e3b0..., 0.89."""
    assert judging([b"hello", b"abc", b""], [0, 0, 0]) == [True, False, False]
    assert judging([b"", b"abc", b"hello"], [0, 0, 1]) == [False, True, True]


def test_of_two_images_that_show_the_same_one_is_the_first_of_its_class():
    assert judging([b"abc", b"", b"abc"], [0, 0, 0]) == [True, False, False]
    assert judging([b"hello", b"hello"], [0, 0]) == [True, True]


def test_about_a_fifth_of_many_judges_and_one_of_every_class_at_least():
    keys = [f"{number}.png".encode() for number in range(10_000)]
    assert np.mean(judging(keys, [0] * len(keys))) == pytest.approx(HELD_OUT_SHARE, abs=0.01)
    labels = [number // 2 for number in range(10_000)]
    held = Counter(label for label, judges in zip(labels, judging(keys, labels), strict=True) if judges)
    assert len(held) == 5_000
    assert held.most_common()[-1][1] == 1


def training(keyed: list[tuple[bytes, int]]) -> Counter:
    """What trains, of images by key and label."""
    judges = judging([key for key, _ in keyed], [label for _, label in keyed])
    return Counter(image for image, its in zip(keyed, judges, strict=True) if not its)


images = st.tuples(st.sampled_from([f"{n}".encode() for n in range(40)]), st.integers(0, 2))


@given(before=st.lists(images, max_size=12), image=images, after=st.lists(images, max_size=12))
def test_whichever_image_is_added_wherever_what_trains_moves_by_one_image_at_most(before, image, after):
    """Keys may come twice, as images may that show the same."""
    without, with_it = training([*before, *after]), training([*before, image, *after])
    assert ((with_it - without) + (without - with_it)).total() <= 1


# -- folders and data sets -------------------------------------------------------------------------


def draw(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def released(images) -> np.ndarray:
    """What a private signature releases before its noise, pixels being the features."""
    rows = images.batch(torch.arange(len(images))).flatten(1).double().numpy()
    return class_sums(rows, images.labels.numpy(), 2)


def test_whichever_file_is_added_to_a_folder_the_release_moves_by_the_sensitivity_at_most(
    tmp_path, backbone
):
    for name in ("ant", "bee"):
        for number in range(30):
            draw(tmp_path / "train" / name / f"{number + 10:04}.png", number)
    before = released(load_folder(tmp_path, backbone).train)
    moved = []
    for seed, name in enumerate(ADDED):
        added = tmp_path / "train" / "ant" / name
        draw(added, 1000 + seed)
        moved.append(np.linalg.norm(released(load_folder(tmp_path, backbone).train) - before))
        added.unlink()
    assert max(moved) == pytest.approx(SENSITIVITY)


def test_wherever_an_image_stands_in_a_data_set_without_parts_the_same_holds(tmp_path, backbone):
    """Caltech101 numbers its images: one more at the front moves all others on by one."""

    def release(root: Path, ants: list[int]) -> np.ndarray:
        place = root / "caltech101" / "101_ObjectCategories"
        for name, seeds in (("ant", ants), ("bass", range(100, 115))):
            for number, seed in enumerate(seeds, start=1):
                draw(place / name / f"image_{number:04}.jpg", seed)
        (place / "BACKGROUND_Google").mkdir()  # in no class
        found = load_torchvision("Caltech101", root, backbone, download=False)
        assert len(found.train) + len(found.evaluation) == 15 + len(ants)
        return released(found.train)

    before = release(tmp_path / "before", [*range(15)])
    for seed in (50, 51, 52):
        after = release(tmp_path / f"{seed}", [seed, *range(15)])
        assert np.linalg.norm(after - before) <= SENSITIVITY * (1 + 1e-9)


def test_a_class_whose_images_all_judge_is_refused_with_what_to_do(tmp_path, backbone):
    """By their names: another one is enough, as soon as it trains."""
    names = [f"{n}.png" for n in range(200)]
    judges = judging([f"bee/{name}".encode() for name in names], [0] * len(names))
    low = [name for name, its in zip(names, judges, strict=True) if its]
    for name in low[:3]:
        draw(tmp_path / "train" / "bee" / name, 0)
    for name in names[:8]:
        draw(tmp_path / "train" / "ant" / name, 1)
    with pytest.raises(TaskDataError, match=r"left to train on of class bee \(of 3\).*give a val/"):
        load_folder(tmp_path, backbone)
    draw(tmp_path / "train" / "bee" / next(name for name in names if name not in low), 0)
    assert load_folder(tmp_path, backbone).train.labels.tolist().count(1) == 1
