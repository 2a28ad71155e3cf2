"""Which files and folders of a directory count as images and classes, and what is told of the others."""

import os
import shutil
import unicodedata
from pathlib import Path

import pytest
import torch
from PIL import Image
from toys import example

from common.class_names import check_class_names
from common.errors import TaskDataError
from common.image_folders import (
    IMAGE_SUFFIXES,
    IMAGE_TYPES,
    SUFFIXES_IN_WORDS,
    LeftOut,
    images_below,
    subfolders,
)
from common.image_reading import read_image
from common.task_data import load_folder
from common.task_folder import read_task_folder

SIZE = 32
COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


@pytest.fixture(scope="module")
def backbone():
    return example("test_resnet", SIZE).backbone


def put(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"anything")


def draw(path: Path, shade: int = 90) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (SIZE, SIZE), (shade,) * 3).save(path, "PNG")


def draw_task(root: Path, classes=("ant", "bee"), count: int = 6) -> Path:
    for name in classes:
        for number in range(count):
            draw(root / "train" / name / f"{number}.png")
    return root


def walked(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in images_below(folder)]


def told(folder: Path) -> str:
    left_out = LeftOut()
    list(images_below(folder, left_out))
    return left_out.sentence("here")


# -- the walk --------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_files_of_every_suffix_in_the_table_are_images_and_pillow_reads_them(tmp_path, suffix):
    """A DIB and an MPO are what Pillow writes as such."""
    formats = {suffix: name for name, all_of in IMAGE_TYPES.items() for suffix in all_of}
    kind = {"JPEG": "JPEG", "PNM": "PPM", "WebP": "WEBP"}.get(formats[suffix], formats[suffix])
    path = tmp_path / f"a{suffix.upper()}"
    mode = {".pgm": "L", ".pbm": "1"}.get(suffix, "RGB")
    Image.new(mode, (9, 7)).save(path, {".dib": "DIB", ".mpo": "MPO"}.get(suffix, kind))
    assert walked(tmp_path) == [path.name]
    assert read_image(path, lambda image: image.convert("RGB").size) == (9, 7)


def test_the_readme_names_the_suffixes_of_the_table():
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert f"`{' '.join(IMAGE_SUFFIXES)}`" in readme
    assert ", ".join(IMAGE_TYPES) in readme


def test_images_come_in_order_of_name_those_of_a_folder_before_those_below_it(tmp_path):
    names = ["b.png", "a/c.JPG", "a/b/d.gif", "z.webp", "é/a.tif"]
    put(*(tmp_path / name for name in names))
    assert walked(tmp_path) == ["b.png", "z.webp", "a/c.JPG", "a/b/d.gif", "é/a.tif"]


def test_hidden_files_and_folders_and_those_of_systems_are_no_images(tmp_path):
    put(tmp_path / "a.png", tmp_path / "._a.png", tmp_path / ".b.jpg", tmp_path / ".DS_Store")
    put(tmp_path / "Thumbs.db", tmp_path / "desktop.ini", tmp_path / "Icon\r")
    folders = (
        ".ipynb_checkpoints", "@eaDir", "@EADIR", "__MACOSX", "#recycle", "$RECYCLE.BIN", ".Trashes",
        "System Volume Information", "lost+found", ".thumbnails", "@Recycle", "__pycache__",
    )  # fmt: skip
    put(*(tmp_path / folder / "below" / "a.png" for folder in folders))
    assert walked(tmp_path) == ["a.png"]
    assert told(tmp_path) == (
        "left out of here: 2 hidden files, 12 folders (#recycle, $RECYCLE.BIN, .Trashes, ...)"
    )


def test_what_is_left_out_is_counted_by_its_suffix(tmp_path):
    put(*(tmp_path / "a" / f"{number}.HEIC" for number in range(12)), tmp_path / "b" / "x.txt")
    put(tmp_path / "README", tmp_path / "odd.\x1b[31m")
    assert told(tmp_path) == (
        "left out of here: 12 .heic files, 2 files without a suffix, 1 .txt file; image files end in "
        + SUFFIXES_IN_WORDS
    )
    put(*(tmp_path / f"a.t{number}" for number in range(9)))
    assert ", 7 files of other types; image files" in told(tmp_path)


def test_of_nothing_that_is_left_out_nothing_is_told(tmp_path):
    put(tmp_path / "a.png", tmp_path / ".DS_Store", tmp_path / ".gitkeep")
    assert told(tmp_path) == ""


def test_names_of_folders_do_not_order_a_terminal_about(tmp_path):
    (tmp_path / ".\x1b[31m").mkdir()
    assert told(tmp_path) == "left out of here: 1 folder (.\ufffd[31m)"


def test_links_are_followed_and_no_link_ends_in_a_circle_or_leads_out_upwards(tmp_path):
    put(tmp_path / "elsewhere" / "a.png", tmp_path / "b.png", tmp_path / "mine" / "c.png")
    mine = tmp_path / "mine"
    (mine / "folder").symlink_to(tmp_path / "elsewhere")
    (mine / "file.png").symlink_to(tmp_path / "b.png")
    (mine / "self").symlink_to(mine)
    (mine / "up").symlink_to(tmp_path)
    (tmp_path / "elsewhere" / "back").symlink_to(mine)
    assert walked(mine) == ["c.png", "file.png", "folder/a.png"]
    (tmp_path / "as").symlink_to(mine)
    assert walked(tmp_path / "as") == ["c.png", "file.png", "folder/a.png"]


def test_broken_links_and_pipes_are_counted_and_never_opened(tmp_path):
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "itself.png").symlink_to(tmp_path / "itself.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert walked(tmp_path) == []
    assert told(tmp_path) == "left out of here: 2 broken links, 1 file without content of its own"


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to root")
def test_a_folder_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(TaskDataError, match=r"closed cannot be read \(Permission denied\)"):
        walked(tmp_path)


def test_folders_of_tasks_are_found_in_the_same_way(tmp_path):
    for name in ("b", "a", ".git", "@eaDir"):
        (tmp_path / name).mkdir()
    put(tmp_path / "x.png", tmp_path / "classes.txt")
    left_out = LeftOut()
    assert [path.name for path in subfolders(tmp_path, left_out)] == ["a", "b"]
    assert left_out.sentence("here") == (
        "left out of here: 1 image outside the folders, 2 folders (.git, @eaDir)"
    )


# -- tasks -----------------------------------------------------------------------------------------


def test_what_systems_leave_behind_is_neither_a_class_nor_an_image(tmp_path, backbone):
    plain = load_folder(draw_task(tmp_path / "plain"), backbone)
    mine = draw_task(tmp_path / "mine")
    for place in (mine / "train", mine / "train" / "ant"):
        for name in ("._0.png", ".ipynb_checkpoints/0-checkpoint.png", "@eaDir/0.png", "Thumbs.db"):
            put(place / name)
    task = load_folder(mine, backbone)
    assert task.classes == ("ant", "bee")
    for part, expected in ((task.train, plain.train), (task.evaluation, plain.evaluation)):
        assert part.labels.tolist() == expected.labels.tolist()
        assert len(part.batch(torch.arange(len(part)))) == len(part)  # all of them can be read
    assert task.left_out == (
        f"left out of {mine}: 2 hidden files, 4 folders (.ipynb_checkpoints, @eaDir)"
    )
    assert plain.left_out == ""


def test_which_images_judge_does_not_change_by_what_is_left_out_beside_them(tmp_path, backbone):
    mine = draw_task(tmp_path, count=30)
    for number, path in enumerate(sorted(mine.rglob("*.png"))):
        draw(path, number)
    before = load_folder(mine, backbone).train.batch(torch.arange(40))
    for path in sorted(mine.rglob("*.png")):
        put(path.with_name(f"._{path.name}"), path.with_name(f"{path.name}.heic"))
    put(mine / "train" / ".trash" / "1.png")
    assert torch.equal(load_folder(mine, backbone).train.batch(torch.arange(40)), before)


def test_a_class_of_several_types_trains_on_all_of_them(tmp_path, backbone):
    draw_task(tmp_path, ("ant",))
    for number in range(12):
        draw(tmp_path / "train" / "bee" / f"{number}.jfif")
    for number in range(3):
        draw(tmp_path / "train" / "bee" / f"{number}.png")
    put(tmp_path / "train" / "bee" / "x.heic")
    task = load_folder(tmp_path, backbone)
    labels = task.train.labels.tolist() + task.evaluation.labels.tolist()
    assert labels.count(1) == 15
    assert task.left_out.startswith(f"left out of {tmp_path}: 1 .heic file; image files end in .png")


def test_classes_may_be_links_and_their_images_may_lie_in_folders(tmp_path, backbone):
    for name in ("ant", "bee"):
        for number in range(3):
            draw(tmp_path / "photos" / name / f"{number}" / f"{number}.png")
        (tmp_path / "mine" / "train").mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / "train" / name).symlink_to(tmp_path / "photos" / name)
        draw(tmp_path / "mine" / "val" / name / "0.png")
    task = load_folder(tmp_path / "mine", backbone)
    assert task.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert task.train.batch(torch.arange(6)).shape == (6, 3, SIZE, SIZE)


def test_a_class_with_nothing_but_other_types_is_refused_with_what_it_has(tmp_path):
    draw_task(tmp_path)
    put(*(tmp_path / "train" / "cat" / f"{number}.heic" for number in range(2)))
    with pytest.raises(TaskDataError, match=r"in .*cat; add images .*left out of it: 2 \.heic files"):
        read_task_folder(tmp_path)


# -- names of classes ------------------------------------------------------------------------------


def both_forms(root: Path) -> None:
    """Skip where the file system has one form of Unicode only."""
    (root / "probe").mkdir()
    for name in (COMPOSED, DECOMPOSED):
        (root / "probe" / name).mkdir(exist_ok=True)
    if len(os.listdir(root / "probe")) == 1:
        pytest.skip("this file system knows one form of a name")
    shutil.rmtree(root / "probe")


def test_a_class_is_the_same_in_either_form_of_unicode(tmp_path, backbone):
    both_forms(tmp_path)
    forms = [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)]
    for number, (training, judging) in enumerate(forms):
        root = draw_task(tmp_path / str(number), ("ant", training))
        for name in ("ant", judging):
            draw(root / "val" / name / "0.png")
        task = load_folder(root, backbone)
        assert task.classes == ("ant", COMPOSED)
        assert task.evaluation.labels.tolist() == [0, 1]


def test_the_same_images_judge_whichever_form_a_copy_has(tmp_path, backbone):
    both_forms(tmp_path)
    kept = []
    for number, name in enumerate((COMPOSED, DECOMPOSED)):
        root = draw_task(tmp_path / str(number), ("ant",), 20)
        for shade in range(20):
            draw(root / "train" / name / f"{name} {shade}.png", 5 * shade)
        images = load_folder(root, backbone).train
        kept.append(images.batch(torch.arange(len(images))))
    assert torch.equal(*kept)


def test_two_folders_of_one_name_are_refused(tmp_path):
    both_forms(tmp_path)
    draw_task(tmp_path, ("ant", COMPOSED, DECOMPOSED))
    with pytest.raises(TaskDataError, match=r"two folders 'café'.*cafe\\u0301.*caf\\xe9.*into one"):
        read_task_folder(tmp_path)


def test_names_that_only_differ_in_form_are_the_same():
    with pytest.raises(TaskDataError, match="no two are the same"):
        check_class_names(("ant", COMPOSED, DECOMPOSED))
