"""Standard output and error as they may be: of another encoding, closed, full, or read by nobody."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = r"""
import errno, json, logging, os, sys
import click
from common.command_line import run, show_json
from common.progress import progress
from common.errors import MismatchError
from common.tables import show

LINES = int(os.environ.get("LINES_PRINTED", "3"))
TEXT = json.loads(os.environ.get("TEXT", '"text"'))

@click.group()
def cli(): ...

@cli.command()
def echo():
    for _ in range(LINES):
        click.echo(TEXT)

@cli.command()
def unflushed():
    sys.stdout.write(f"{TEXT}\n" * LINES)

@cli.command()
def table():
    show(TEXT, ["class", TEXT], [[TEXT, TEXT]] * LINES, TEXT)

@cli.command("json")
def as_json():
    show_json([TEXT] * LINES)

@cli.command()
def told():
    with progress() as bars:
        bars.add_task(TEXT, total=LINES)
        for _ in range(LINES):
            bars.console.print(TEXT)
            click.echo(TEXT, err=True)
            logging.getLogger("maskvote").warning("%s", TEXT)
    click.echo("done")

@cli.command()
def refused():
    sys.stdout.write(TEXT)
    raise MismatchError("they do not belong together")

@cli.command()
@click.argument("name")
def fails(name):
    raise eval(name)

run(cli)
"""
WAYS = [
    ("echo", "utf-8"),
    ("echo", "ascii"),
    ("unflushed", "utf-8"),
    ("table", "utf-8"),
    ("json", "utf-8"),
    ("--help", "utf-8"),
]
"""Commands of the program and stdout's encoding: click takes another way where that is ASCII."""


def program(
    *words: str | bytes,
    stdout: int | IO = subprocess.PIPE,
    stderr: int | IO = subprocess.PIPE,
    **changes: str,
) -> subprocess.CompletedProcess[bytes]:
    """A small command line of ours, run in a process of its own with these changes to the environment."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LC_"))}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        env={**kept, "PYTHONPATH": str(ROOT), **changes},
        stdout=stdout,
        stderr=stderr,
        timeout=60,
        check=False,
    )


@pytest.fixture
def unread():
    """The end of a pipe that nobody reads."""
    reads, writes = os.pipe()
    os.close(reads)
    yield writes
    os.close(writes)


@pytest.mark.parametrize("lines", ["3", "30000"])
@pytest.mark.parametrize(("way", "encoding"), WAYS)
def test_a_reader_that_has_left_is_no_failure(unread, way, lines, encoding):
    """Few lines are written when the command or Python ends, many while it runs."""
    ended = program(way, stdout=unread, LINES_PRINTED=lines, PYTHONIOENCODING=encoding)
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_head_gets_its_line_and_the_command_ends_well():
    words = 'python -c "$1" echo | head -1; echo ${PIPESTATUS[0]}'.replace("python", sys.executable)
    said = subprocess.run(
        ["bash", "-c", words, "bash", PROGRAM],
        env={**os.environ, "PYTHONPATH": str(ROOT), "LINES_PRINTED": "100000"},
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert (said.stdout, said.stderr) == (b"text\n0\n", b"")


@pytest.mark.parametrize("lines", ["3", "30000"])
@pytest.mark.parametrize(("way", "encoding"), WAYS)
def test_a_full_disk_behind_stdout_is_one_sentence(way, lines, encoding):
    with open("/dev/full", "wb") as full:
        ended = program(way, stdout=full, LINES_PRINTED=lines, PYTHONIOENCODING=encoding)
    assert ended.returncode == 2
    assert ended.stderr.decode().splitlines() == [
        "error: standard output cannot be written (No space left on device); free some space, or write "
        "elsewhere"
    ]


def test_the_error_of_a_command_is_told_before_that_of_its_output():
    with open("/dev/full", "wb") as full:
        ended = program("refused", stdout=full)
    assert (ended.returncode, ended.stderr) == (3, b"error: they do not belong together\n")


@pytest.mark.parametrize("lines", ["3", "3000"])
def test_where_nobody_reads_stderr_the_work_goes_on(unread, lines):
    ended = program("told", stderr=unread, LINES_PRINTED=lines)
    assert (ended.returncode, ended.stdout) == (0, b"done\n")
    with open("/dev/full", "wb") as full:
        ended = program("told", stderr=full, LINES_PRINTED=lines)
    assert (ended.returncode, ended.stdout) == (0, b"done\n")


def test_where_nobody_reads_either_the_command_ends_well(unread):
    assert program("told", stdout=unread, stderr=unread).returncode == 0


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
@pytest.mark.parametrize("way", ["echo", "unflushed", "table", "told"])
def test_a_stream_that_is_closed_is_no_failure(way, closed):
    ended = subprocess.run(
        ["bash", "-c", f'{sys.executable} -c "$1" {way} {closed}', "bash", PROGRAM],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count(b"Traceback") == 0


LATIN: Mapping[str, str] = {"PYTHONIOENCODING": "latin-1"}
ASCII: Mapping[str, str] = {"PYTHONIOENCODING": "ascii"}
STRICT: Mapping[str, str] = {"PYTHONIOENCODING": "utf-8:strict"}
POSIX: Mapping[str, str] = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize("way", ["echo", "unflushed", "table", "told"])
@pytest.mark.parametrize(
    ("environment", "encoding", "shown"),
    [
        (LATIN, "latin-1", "é \\u72ac"),
        (ASCII, "ascii", "\\xe9 \\u72ac"),
        (POSIX, "ascii", "\\xe9 \\u72ac"),
        (STRICT, "utf-8", "é 犬"),
    ],
)
def test_characters_that_a_stream_does_not_have_are_escaped(way, environment, encoding, shown):
    ended = program(way, TEXT=json.dumps("é 犬"), **environment)
    assert ended.returncode == 0, ended.stderr
    assert shown in (ended.stderr if way == "told" else ended.stdout).decode(encoding)


@pytest.mark.parametrize("environment", [LATIN, STRICT, {"LC_ALL": "C.UTF-8"}])
@pytest.mark.parametrize("way", ["echo", "table", "told"])
def test_a_file_name_that_is_no_text_is_escaped(way, environment):
    ended = program(way, TEXT=json.dumps(os.fsdecode(b"a\xffb.png")), **environment)
    assert ended.returncode == 0, ended.stderr
    assert b"a\\udcffb.png" in ended.stdout + ended.stderr


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            "OSError(errno.ENOSPC, 'No space left on device', '/tmp/x')",
            "'No space left on device' of /tmp/x",
        ),
        ("OSError(errno.EMFILE, 'Too many open files')", "ulimit -n"),
        ("PermissionError(errno.EACCES, 'Permission denied', '/srv/x')", "of /srv/x; check the path"),
        ("MemoryError()", "'Cannot allocate memory'; free some memory"),
        ("RuntimeError('DefaultCPUAllocator: can\\'t allocate memory: you tried')", "free some memory"),
    ],
)
def test_what_the_operating_system_refuses_is_one_sentence(error, told):
    ended = program("fails", error)
    assert ended.returncode == 1
    (line,) = ended.stderr.decode().splitlines()
    assert line.startswith("error: the operating system says ")
    assert told in line


@pytest.mark.parametrize("error", ["KeyError('x')", "FileNotFoundError(2, 'No such file', 'x')"])
def test_a_bug_has_its_traceback(error):
    ended = program("fails", error)
    assert ended.returncode == 1
    assert b"Traceback" in ended.stderr


@pytest.mark.parametrize("package", ["client", "server", "simulations"])
def test_every_command_line_of_ours_is_run_so(package):
    words = [sys.executable, "-m", package, "--help"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with open("/dev/full", "wb") as full:
        ended = subprocess.run(words, env=environment, stdout=full, stderr=subprocess.PIPE, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith(b"error: standard output cannot be written")
