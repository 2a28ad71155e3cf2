"""Errors of the operating system pass wherever code that is not ours may raise anything."""

import errno
import os
import tempfile

import pytest
import torch
from PIL import Image
from system_limits import files_at_most

from common.backbone import Backbone, read_weights
from common.errors import InputError, TaskDataError
from common.image_reading import read_image
from common.mask import Mask
from common.proof import prove
from common.system_errors import pass_on, system_error
from common.temporary_files import check_room, temporary_directory


def raised_from(cause: BaseException) -> ValueError:
    error = ValueError("this model cannot be followed")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), errno.ENOSPC),
        (raised_from(raised_from(OSError(errno.EMFILE, "Too many open files"))), errno.EMFILE),
        (MemoryError(), errno.ENOMEM),
        (RuntimeError("[ONNXRuntimeError] : 6 : bad_alloc"), errno.ENOMEM),
        (FileNotFoundError(2, "No usable temporary directory found in ['/tmp']"), errno.ENOSPC),
    ],
)
def test_it_is_found_by_its_number_its_words_and_behind_others(error, number):
    found = system_error(error)
    assert found is not None
    assert found.errno == number
    with pytest.raises(OSError, match=os.strerror(number)):
        pass_on(error)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        OSError("image file is truncated"),
        FileNotFoundError(errno.ENOENT, "No such file"),
        PermissionError(errno.EACCES, "Permission denied"),
        raised_from(KeyError("x")),
    ],
)
def test_all_others_are_left_to_whoever_knows_what_they_mean(error):
    assert system_error(error) is None
    pass_on(error)


def test_too_many_open_files_are_not_the_fault_of_an_image_or_of_weights(tmp_path, backbone: Backbone):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "weights").write_bytes(b"not looked at")
    backbone.skeleton()  # what is imported for it is there
    with files_at_most(0), pytest.raises(TaskDataError) as told:
        read_image(tmp_path / "a.png", Image.Image.copy)
    assert "a.png cannot be read (Too many open files); allow this process more" in str(told.value)
    with files_at_most(0), pytest.raises(OSError, match="Too many open files"):
        read_weights(tmp_path / "weights", backbone)


def test_an_image_that_is_a_directory_or_a_link_to_itself_is_told_so(tmp_path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "circle.png").symlink_to("circle.png")
    for name, said in (
        ("folder.png", "Is a directory"),
        ("circle.png", "Too many levels of symbolic links"),
    ):
        with pytest.raises(TaskDataError, match=rf"{name} cannot be read \({said}\)"):
            read_image(tmp_path / name, Image.Image.copy)


def test_where_memory_ends_a_proof_ends_too_and_says_nothing_of_the_groups(
    backbone, structure, monkeypatch
):
    """A verdict would be kept, and freeze a group for good."""

    def exhausted(*_: object) -> None:
        torch.empty(2**58)

    monkeypatch.setattr("common.proof.rebuild", exhausted)
    with pytest.raises(OSError, match="Cannot allocate memory"):
        prove(backbone, structure)
    assert Mask.full(structure).kept.all()


def test_a_temporary_directory_that_is_full_is_named_before_anything_slow(tiny_temporary):
    check_room(1 << 16, 1 << 16)
    with pytest.raises(
        InputError, match=rf"{tiny_temporary} \(No space left on device\); free some space"
    ):
        check_room(1 << 19, 1 << 20)
    assert list(tiny_temporary.iterdir()) == []


def test_a_temporary_directory_goes_with_all_that_it_holds(tiny_temporary):
    with temporary_directory() as directory:
        (directory / "file").write_text("text")
        assert directory.parent == tiny_temporary
    assert list(tiny_temporary.iterdir()) == []


def test_where_no_temporary_directory_can_be_made_that_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    told = r"nowhere \(No such file or directory\); free some space there"
    with pytest.raises(InputError, match=told), temporary_directory():
        pass
