"""Types of options: what a word alone can tell is told while the command line is parsed."""

import os

import click
import pytest
from click.testing import CliRunner

from common.errors import InputError
from common.option_types import INPUT_DIRECTORY, INPUT_FILE, OUTPUT_FILE, SHARE


@pytest.mark.parametrize(
    ("word", "share"),
    [("0.1", 0.1), ("10%", 0.1), (" 2.5 % ", 0.025), ("100%", 1.0), ("29%", 0.29), ("1e-3", 0.001)],
)
def test_a_share_is_a_number_or_a_percentage(word, share):
    assert SHARE.convert(word, None, None) == share


@pytest.mark.parametrize("word", ["", "%", "a tenth", "10%%", "10 percent", "1/10", "10% of it"])
def test_what_is_no_share_is_told_with_both_ways_to_write_one(word):
    with pytest.raises(click.BadParameter, match=r"is no share; give 0\.1 or 10%"):
        SHARE.convert(word, None, None)


def test_the_help_text_calls_it_a_share():
    command = click.Command("cut", params=[click.Option(["--keep-ratio"], type=SHARE)])
    assert "--keep-ratio SHARE" in CliRunner().invoke(command, ["--help"]).output


def test_a_file_to_read_has_to_be_there_and_is_not_opened(tmp_path):
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe")  # to open it would wait for a writer
    for name in ("file", "pipe"):
        assert INPUT_FILE.convert(str(tmp_path / name), None, None) == tmp_path / name
    for name, why in (("nothing", "No such file"), ("", "it is a directory"), ("file/x", "Not a dir")):
        with pytest.raises(InputError, match=rf"cannot be read \({why}.*; check the path"):
            INPUT_FILE.convert(str(tmp_path / name), None, None)


def test_a_file_to_write_needs_a_directory_and_is_none(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("old")
    for name in ("file", "new"):
        assert OUTPUT_FILE.convert(str(tmp_path / name), None, None) == tmp_path / name
    monkeypatch.chdir(tmp_path)
    OUTPUT_FILE.convert("beside", None, None)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    for name, why in (
        ("", "it is a directory"),
        ("a/b", "there is no directory"),
        ("file/x", "there is"),
    ):
        with pytest.raises(InputError, match=rf"cannot be written \({why}"):
            OUTPUT_FILE.convert(str(tmp_path / name), None, None)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_may_not_be_written_into_is_told(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="you may not write into"):
        OUTPUT_FILE.convert(str(tmp_path / "new"), None, None)


def test_a_directory_to_read_has_to_be_there(tmp_path):
    (tmp_path / "file").write_text("")
    assert INPUT_DIRECTORY.convert(str(tmp_path), None, None) == tmp_path
    for name in ("nothing", "file"):
        with pytest.raises(InputError, match="is not a directory; check the path"):
            INPUT_DIRECTORY.convert(str(tmp_path / name), None, None)
