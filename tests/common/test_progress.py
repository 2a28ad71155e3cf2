"""Long work tells how far it is: by bars in a terminal, and elsewhere by a plain line now and then."""

import io
import os
import pty
import re
import subprocess
import sys
import time
from contextlib import redirect_stderr
from pathlib import Path

import pytest

from common import progress as module
from common.progress import duration, progress

ROOT = Path(__file__).parents[2]


@pytest.fixture
def often(monkeypatch):
    """Lines follow each other ten times a second."""
    monkeypatch.setattr(module, "SECONDS", 0.1)


def worked(steps: int, seconds: float = 0.04) -> None:
    with progress() as bars:
        bar = bars.add_task("Seeding", total=steps)
        for done in range(steps):
            time.sleep(seconds)
            bars.update(bar, completed=done + 1)


@pytest.mark.usefixtures("often")
def test_a_line_says_what_how_much_of_how_much_and_how_long_the_rest_takes(capsys):
    worked(2000, seconds=0.001)
    *lines, last = capsys.readouterr().err.splitlines()
    assert len(lines) > 10
    found = [re.fullmatch(r"Seeding: ([\d,]+) of 2,000, (\d+) s (so far|left)", line) for line in lines]
    assert all(found), lines
    done = [int(match[1].replace(",", "")) for match in found]
    assert done == sorted(done)
    assert found[-1][3] == "left"
    assert re.fullmatch(r"Seeding: 2,000 of 2,000, done in \d+ s", last)


@pytest.mark.usefixtures("often")
def test_what_was_done_before_makes_the_rest_no_faster(capsys):
    """A hundred of a hundred and three are there at once; each of the others takes half a second."""
    with progress() as bars:
        bar = bars.add_task("Inspecting", total=103)
        bars.update(bar, completed=100)
        for done in (101, 102):
            time.sleep(0.5)
            bars.update(bar, completed=done)
        time.sleep(0.15)
    *_, last = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"Inspecting: 102 of 103, [01] s left", last)


def test_short_work_says_nothing(capsys):
    worked(3)
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("often")
def test_a_step_that_takes_long_by_itself_says_that_it_goes_on(capsys):
    with progress() as bars:
        bar = bars.add_task("Reading", total=None)
        time.sleep(0.35)
        bars.update(bar, description="Checking")
        bars.add_task("devices", total=3)
        time.sleep(0.35)
        bars.update(bar, completed=1, total=1)
    told = capsys.readouterr().err
    assert re.search(r"^Reading: \d s so far$", told, re.MULTILINE)
    assert re.search(r"^Checking: \d s so far; devices: 0 of 3, \d s so far$", told, re.MULTILINE)
    assert re.search(r"^Checking: done in \d s$", told, re.MULTILINE)


def interrupted() -> None:
    with progress() as bars:
        bars.add_task("Seeding", total=3)
        time.sleep(0.25)
        raise KeyboardInterrupt


@pytest.mark.usefixtures("often")
def test_work_that_is_stopped_is_not_said_to_be_done(capsys):
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    told = capsys.readouterr().err
    assert "Seeding: 0 of 3" in told
    assert "done" not in told


@pytest.mark.usefixtures("often")
def test_what_is_redirected_meanwhile_takes_no_line_away(capsys):
    with redirect_stderr(io.StringIO()) as hidden:
        pass
    with progress() as bars, redirect_stderr(hidden):
        bars.add_task("Quantising", total=None)
        time.sleep(0.25)
    assert "Quantising: 0 s so far" in capsys.readouterr().err
    assert hidden.getvalue() == ""


def test_lines_become_rarer_as_the_work_goes_on(monkeypatch, capsys):
    monkeypatch.setattr(module, "SECONDS", 0.05)
    monkeypatch.setattr(module, "LONGER", 1.0)
    with progress() as bars:
        bars.add_task("Seeding", total=3)
        time.sleep(1.5)
    assert 3 <= len(capsys.readouterr().err.splitlines()) <= 6  # after 0.05, 0.1, 0.2, 0.4, 0.8 seconds


def test_times_are_in_words():
    times = [duration(seconds) for seconds in (0.4, 99, 100, 3600, 36_000)]
    assert times == ["0 s", "99 s", "2 min", "60 min", "10.0 h"]


def test_in_a_terminal_there_are_bars_and_no_lines():
    leader, follower = pty.openpty()
    program = (
        "import time\nfrom common.progress import progress\n"
        "with progress() as bars:\n"
        "    for _ in bars.track(range(3), description='Seeding'): time.sleep(0.2)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "80"}
    subprocess.run([sys.executable, "-c", program], stderr=follower, env=environment, check=True)
    os.close(follower)
    shown = os.read(leader, 100_000).decode()
    os.close(leader)
    assert "Seeding ━" in re.sub(r"\x1b\[[\d;?]*\w", "", shown)
    assert "3/3" in shown
    assert " of 3" not in shown
