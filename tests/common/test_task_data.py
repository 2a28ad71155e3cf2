import struct

import numpy as np
import pytest
import torch
from PIL import Image
from toys import example, images_of

from common.errors import TaskDataError
from common.images import PixelImages
from common.task_data import Task, load_folder
from common.torchvision_data import load_torchvision

SIZE = 32


@pytest.fixture(scope="module")
def backbone():
    return example("test_resnet", SIZE).backbone


def write_image(path, shade: int, size=(SIZE, SIZE), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, shade if mode == "L" else (shade, shade, shade)).save(path)


def write_folder(root, part: str = "train", counts=(4, 6), first: int = 0):
    """Directories a, b, ... with so many images; every image has a shade of its own."""
    shade = first
    for name, count in zip("abcdef", counts, strict=False):
        for number in range(count):
            write_image(root / part / name / f"{number}.png", shade)
            shade += 1
    return root


def shades(images) -> list[int]:
    """The shade of every image, recovered from the normalised values."""
    batch = images.batch(torch.arange(len(images)))
    return ((batch * 0.5 + 0.5) * 255).mean((1, 2, 3)).round().int().tolist()


# -- folders ---------------------------------------------------------------------------------------


def test_a_folder_with_val_is_its_classes_by_name_and_both_parts_as_they_are(tmp_path, backbone):
    write_folder(tmp_path, "train", (2, 3))
    write_folder(tmp_path, "val", (1, 2), first=100)
    task = load_folder(tmp_path, backbone)
    assert task.classes == ("a", "b")
    assert task.train.labels.tolist() == [0, 0, 1, 1, 1]
    assert task.evaluation.labels.tolist() == [0, 1, 1]
    assert shades(task.train) == [0, 1, 2, 3, 4]
    assert shades(task.evaluation) == [100, 101, 102]


def test_without_val_a_share_of_every_class_judges_and_no_image_does_both(tmp_path, backbone):
    task = load_folder(write_folder(tmp_path, counts=(5, 10, 2)), backbone)
    train, held = set(shades(task.train)), set(shades(task.evaluation))
    assert not train & held
    assert train | held == set(range(17))
    assert torch.bincount(task.evaluation.labels).min() >= 1


def test_the_held_out_images_are_the_same_every_time(tmp_path, backbone):
    write_folder(tmp_path)
    first, again = (shades(load_folder(tmp_path, backbone).evaluation) for _ in range(2))
    assert first == again


def test_images_are_read_when_they_are_asked_for(tmp_path, backbone):
    """A broken file is no problem until it is its turn; then it is named."""
    write_folder(tmp_path, "train", (2, 2))
    write_folder(tmp_path, "val", (1, 1))
    broken = tmp_path / "train" / "b" / "0.png"
    broken.write_bytes(b"not an image")
    task = load_folder(tmp_path, backbone)
    task.train.batch(torch.tensor([0, 1, 3]))
    with pytest.raises(TaskDataError, match=r"b.0\.png cannot be read as an image"):
        task.train.batch(torch.tensor([2]))


@pytest.mark.parametrize("images_kept", [0, 3, 10, 1000])
def test_how_many_decoded_images_are_kept_changes_no_value_and_bounds_what_is_held(
    tmp_path, backbone, images_kept
):
    write_folder(tmp_path, counts=(8, 8))
    one = 3 * SIZE * SIZE
    free, bounded = load_folder(tmp_path, backbone), load_folder(tmp_path, backbone, images_kept * one)
    cache = bounded.train._cache
    assert cache is bounded.evaluation._cache
    for indices in ([5, 1, 9], [1, 0, 9], list(range(len(free.train)))):
        for _ in range(2):
            chosen = torch.tensor(indices)
            assert torch.equal(free.train.batch(chosen), bounded.train.batch(chosen))
    bounded.evaluation.batch(torch.arange(len(bounded.evaluation)))
    assert len(cache._pixels) == min(images_kept, 16)


def test_an_image_that_is_kept_is_not_read_again_and_one_that_is_not_is(tmp_path, backbone):
    write_folder(tmp_path, "train", (2, 2))
    write_folder(tmp_path, "val", (1, 1))
    train = load_folder(tmp_path, backbone, 3 * SIZE * SIZE).train
    kept = train.batch(torch.tensor([0, 1]))
    for name in ("0", "1"):
        write_image(tmp_path / "train" / "a" / f"{name}.png", 200)
    again = train.batch(torch.tensor([0, 1]))
    assert torch.equal(again[0], kept[0])
    assert not torch.equal(again[1], kept[1])


@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_a_file_that_is_no_image_is_named(tmp_path, backbone, damage):
    write_folder(tmp_path, counts=(2, 2))
    path = tmp_path / "train" / "a" / "0.png"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    data = path.read_bytes()
    path.write_bytes({"truncated": data[: len(data) // 2], "empty": b"", "text": b"hello"}[damage])
    write_folder(tmp_path, "val", (1, 1))
    train = load_folder(tmp_path, backbone).train
    with pytest.raises(TaskDataError, match=r"a.0\.png cannot be read.*repair or remove"):
        train.batch(torch.tensor([0]))


def test_images_of_any_size_mode_and_suffix_are_brought_to_the_backbones_input(tmp_path, backbone):
    for number, (size, mode, suffix) in enumerate(
        [((50, 20), "RGB", "jpg"), ((8, 8), "L", "PNG"), ((300, 40), "RGB", "webp")]
    ):
        write_image(tmp_path / "train" / "a" / f"{number}.{suffix}", 90, size, mode)
    Image.new("RGBA", (40, 40), (90, 90, 90, 255)).save(tmp_path / "train" / "a" / "alpha.png")
    write_folder(tmp_path, "val", (1, 1), first=90)
    write_image(tmp_path / "train" / "b" / "0.bmp", 90)
    images = load_folder(tmp_path, backbone).train
    batch = images.batch(torch.arange(len(images)))
    assert batch.shape == (5, 3, SIZE, SIZE)
    assert batch.dtype == torch.float32
    assert np.allclose(shades(images), 90, atol=2)


def test_images_are_normalised_as_the_backbone_wants_them(tmp_path, backbone):
    """With mean and std 0.5: black is -1, white is 1."""
    write_image(tmp_path / "train" / "a" / "0.png", 0)
    write_image(tmp_path / "train" / "b" / "0.png", 255)
    write_folder(tmp_path, "val", (1, 1))
    batch = load_folder(tmp_path, backbone).train.batch(torch.tensor([0, 1]))
    assert batch[0].unique().tolist() == [-1.0]
    assert batch[1].unique().tolist() == [1.0]


def test_other_files_and_folders_beside_the_images_are_left_alone(tmp_path, backbone):
    write_folder(tmp_path, counts=(2, 2))
    (tmp_path / "train" / "notes.txt").write_text("about")
    (tmp_path / "train" / "a" / "notes.txt").write_text("about")
    (tmp_path / "train" / "a" / "thumbnails.png").mkdir()
    task = load_folder(tmp_path, backbone)
    assert task.classes == ("a", "b")
    assert len(task.train) + len(task.evaluation) == 4


def remove(*parts):
    def change(root):
        path = root.joinpath(*parts)
        for file in sorted(path.rglob("*"), reverse=True):
            file.unlink() if file.is_file() else file.rmdir()
        path.rmdir()

    return change


def empty(*parts):
    return lambda root: root.joinpath(*parts).mkdir(parents=True)


@pytest.mark.parametrize(
    ("counts", "change", "message"),
    [
        ((2, 2), remove("train"), r"train is not a directory; put images into"),
        ((), empty("train"), r"train has no class directories"),
        ((3,), None, r"a task of 1 class \(a\)"),
        ((3, 1), None, r"train on of class b \(of 1\).*add another, or give a val/"),
        ((2, 2), empty("train", "c"), r"no image .* in .*c; add images"),
        ((2, 2), empty("val"), r"no image .* in .*val.a, .*val.b"),
    ],
)
def test_a_folder_that_is_no_task_is_refused_with_what_is_missing(
    tmp_path, backbone, counts, change, message
):
    write_folder(tmp_path, counts=counts)
    if change is not None:
        change(tmp_path)
    with pytest.raises(TaskDataError, match=message):
        load_folder(tmp_path, backbone)


def test_a_folder_that_does_not_exist_is_named(tmp_path, backbone):
    with pytest.raises(TaskDataError, match=r"nowhere.train is not a directory"):
        load_folder(tmp_path / "nowhere", backbone)


def test_an_evaluation_class_that_training_lacks_is_not_passed_over(tmp_path, backbone):
    """Its images would silently judge nothing."""
    write_folder(tmp_path, "train", (2, 2))
    write_folder(tmp_path, "val", (1, 1, 1))
    with pytest.raises(TaskDataError, match=r"val.*c"):
        load_folder(tmp_path, backbone)


# -- in memory -------------------------------------------------------------------------------------


def test_pixels_of_another_size_or_type_are_refused(backbone):
    labels = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(
        TaskDataError, match=r"uint8 \(2, 3, 16, 16\); the backbone takes uint8 \(N, 3, 32, 32\)"
    ):
        PixelImages(torch.zeros(2, 3, 16, 16, dtype=torch.uint8), labels, backbone)
    with pytest.raises(TaskDataError, match="float32"):
        PixelImages(torch.zeros(2, 3, 32, 32), labels, backbone)


def test_a_task_needs_two_classes_and_training_images_of_each(backbone):
    images = images_of(backbone, per_class=2)
    with pytest.raises(TaskDataError, match="a task of 1 class"):
        Task(("only",), images, images)
    with pytest.raises(TaskDataError, match="no training image of class d, e"):
        Task(("a", "b", "c", "d", "e"), images, images)


# -- torchvision -----------------------------------------------------------------------------------


def write_mnist(root, count: int = 4) -> None:
    """MNIST's own files, with so many digits of shades 10, 20, ... of which every second is a 1."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part, number in (("train", count), ("t10k", 2)):
        images = np.repeat(np.arange(10, 10 * number + 1, 10, dtype=np.uint8), 28 * 28)
        header = struct.pack(">HBB3I", 0, 8, 3, number, 28, 28)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        labels = (np.arange(number) % 2).astype(np.uint8)
        header = struct.pack(">HBBI", 0, 8, 1, number)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())


def test_classes_that_a_data_set_names_but_does_not_bring_are_told(tmp_path, backbone):
    """These files hold zeros and ones; MNIST names ten digits."""
    write_mnist(tmp_path)
    found = load_torchvision("MNIST", tmp_path, backbone)
    with pytest.raises(TaskDataError, match="no training image of class 2 - two, 3 - three"):
        Task(found.classes, found.train, found.evaluation)


def test_no_more_images_of_a_data_set_are_kept_decoded_than_fit(tmp_path, backbone):
    write_mnist(tmp_path, count=20)
    free, bounded = (
        load_torchvision("MNIST", tmp_path, backbone, kept * 3 * SIZE * SIZE, download=False)
        for kept in (100, 3)
    )
    everything = torch.arange(20)
    assert torch.equal(free.train.batch(everything), bounded.train.batch(everything))
    assert len(bounded.train._cache._pixels) == 3
    assert len(free.train._cache._pixels) == 22  # both parts


def test_a_data_set_of_torchvision_is_read_by_its_name_from_its_own_files(tmp_path, backbone):
    write_mnist(tmp_path, count=20)
    labels = tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:8] + bytes(range(10)) * 2)
    task = load_torchvision("MNIST", tmp_path, backbone, download=False)
    assert task.classes[:2] == ("0 - zero", "1 - one")
    assert task.train.labels.tolist() == list(range(10)) * 2
    assert shades(task.train) == list(range(10, 201, 10))
    assert shades(task.evaluation) == [10, 20]
    assert task.train.batch(torch.tensor([0])).shape == (1, 3, SIZE, SIZE)


def write_grey(path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (SIZE, SIZE), (shade, shade, shade)).save(path, quality=100)


def test_of_a_data_set_without_parts_some_images_of_every_class_judge_and_none_does_both(
    tmp_path, backbone
):
    for name, shades_of in (("ant", range(10, 70, 10)), ("bass", range(100, 130, 10))):
        for number, shade in enumerate(shades_of):
            folder = tmp_path / "caltech101" / "101_ObjectCategories" / name
            write_grey(folder / f"image_{number + 1:04}.jpg", shade)
    (tmp_path / "caltech101" / "101_ObjectCategories" / "BACKGROUND_Google").mkdir()  # in no class
    task = load_torchvision("Caltech101", tmp_path, backbone, download=False)
    assert task.classes == ("ant", "bass")
    train, held = shades(task.train), shades(task.evaluation)
    assert sorted(train + held) == [10, 20, 30, 40, 50, 60, 100, 110, 120]
    assert {*task.train.labels.tolist()} == {*task.evaluation.labels.tolist()} == {0, 1}


def test_pets_are_trained_on_what_their_own_lists_say(tmp_path, backbone):
    place = tmp_path / "oxford-iiit-pet"
    (place / "annotations" / "trimaps").mkdir(parents=True)
    for number, name in enumerate(("Abyssinian_1", "Abyssinian_2", "beagle_1", "beagle_2")):
        write_grey(place / "images" / f"{name}.jpg", 50 * (number + 1))
    lists = {"trainval": "Abyssinian_1 1 1 1\nbeagle_2 2 1 1\n", "test": "Abyssinian_2 1 1 1\n"}
    for part, lines in lists.items():
        (place / "annotations" / f"{part}.txt").write_text(lines)
    task = load_torchvision("OxfordIIITPet", tmp_path, backbone, download=False)
    assert task.classes == ("Abyssinian", "Beagle")
    assert shades(task.train) == [50, 200]
    assert shades(task.evaluation) == [100]


@pytest.mark.parametrize("name", ["NoSuchSet", "VisionDataset", "folder", "__name__"])
def test_a_name_that_is_no_data_set_is_refused(tmp_path, backbone, name):
    with pytest.raises(TaskDataError, match=name):
        load_torchvision(name, tmp_path, backbone)


def test_a_data_set_that_is_neither_there_nor_to_be_downloaded_is_refused(tmp_path, backbone):
    with pytest.raises(
        TaskDataError, match=r"CIFAR10 can neither be read from .*; download it elsewhere"
    ):
        load_torchvision("CIFAR10", tmp_path, backbone, download=False)


def test_without_a_network_the_download_is_refused_with_what_to_do(tmp_path, backbone, monkeypatch):
    """Nothing listens on the proxy's port."""
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(TaskDataError, match=r"CIFAR10 can neither be read from .*refused.*download it"):
        load_torchvision("CIFAR10", tmp_path, backbone)


@pytest.mark.parametrize("name", ["two\nlines", " ", "no text \udcff"])
def test_class_names_that_no_file_can_hold_are_told_before_anything_is_computed(tmp_path, backbone, name):
    draw_folder = tmp_path / "train"
    for folder in ("plain", name):
        (draw_folder / folder).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (8, 8)).save(draw_folder / folder / f"{number}.png")
    with pytest.raises(TaskDataError, match="each is one line of text"):
        load_folder(tmp_path, backbone)
