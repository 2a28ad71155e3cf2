"""The commands of a document, run as they stand there, so that what a guide promises is known to hold.

A document's commands stand in blocks fenced as `sh`. One terminal runs them in their order, each block by
`bash -euo pipefail`. A comment on the line above a block says what is special about it:

    <!-- keeps running: NAME; ready: PATTERN -->   a server: ready once what it says matches the pattern
    <!-- fails: PATTERN -->                        exits with another status than 0, and says this
    <!-- not run: REASON -->                       for the reader alone

A test gives it ports that are free, and follows it:

    guide = with_free_ports(read_blocks(ROOT / "docs" / "deploy.md"), 7070)
    with Terminal(directory, {"PYTHONPATH": str(ROOT)}) as terminal:
        for block in guide:
            terminal.follow(block)
"""

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Self

FENCED = re.compile(
    r"(?:^<!-- (?P<marks>[^\n]*) -->\n)?^```sh\n(?P<commands>.*?)^```$", re.DOTALL | re.MULTILINE
)
HEADING = re.compile(r"^##+ (.*)$", re.MULTILINE)
MARKS = ("keeps running", "ready", "fails", "not run")

RUN_SECONDS, READY_SECONDS, END_SECONDS = 300, 120, 15
"""How long a block may run, a server may take to be ready, and a server may take to end."""


@dataclass(frozen=True)
class Block:
    """Commands, what is marked of them, and where in a document they stand.

    `keeps_running` is a server's name, `ready` and `fails` are patterns of what it says; empty, they are
    not marked. `section` is the heading above it.
    """

    commands: str
    keeps_running: str = ""
    ready: str = ""
    fails: str = ""
    section: str = ""
    place: str = "a test"


def read_blocks(document: Path) -> list[Block]:
    """The blocks of a document that are to be run, in its order. Raises ValueError for a wrong mark."""
    text, blocks = document.read_text(), []
    for found in FENCED.finditer(text):
        line = text.count("\n", 0, found.start("commands"))
        headings = HEADING.findall(text, 0, found.start())
        marks = _marks(found["marks"] or "", place := f"{document.name}:{line}")
        if "not run" not in marks:
            values = {name.replace(" ", "_"): value for name, value in marks.items()}
            section = headings[-1] if headings else ""
            blocks.append(Block(found["commands"], **values, section=section, place=place))
    return blocks


def _marks(comment: str, place: str) -> dict[str, str]:
    parts = [part.partition(": ") for part in comment.split("; ") if part]
    marks = {name: value for name, _, value in parts}
    if not all(name in MARKS and value for name, value in marks.items()):
        raise ValueError(f"{place} is marked {comment!r}; write {', '.join(f'{m}: …' for m in MARKS)}")
    if ("keeps running" in marks) != ("ready" in marks):
        raise ValueError(
            f"{place} is marked {comment!r}; a server has a name and a sign that it is ready"
        )
    return marks


def with_free_ports(blocks: Iterable[Block], *ports: int) -> list[Block]:
    """The blocks with each of these ports, wherever they name it, replaced by one that is free here."""
    named = re.compile(rf"\b({'|'.join(map(str, ports))})\b")
    free = dict(zip(map(str, ports), map(str, free_ports(len(ports))), strict=True))
    return [
        replace(block, commands=named.sub(lambda found: free[found[0]], block.commands))
        for block in blocks
    ]


def free_ports(count: int) -> list[int]:
    """So many different ports of the loopback that nobody listens on."""
    with contextlib.ExitStack() as held:
        listeners = [held.enter_context(socket.socket()) for _ in range(count)]
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in listeners]


class Terminal:
    """A terminal in a directory, with servers in the background; all that it started ends with it.

    What a block exports, and where it goes with `cd`, the blocks after it find. Programs beside this
    Python are found first. AssertionError tells what a block said that did not do what it should.
    """

    def __init__(self, directory: Path, environment: Mapping[str, str] | None = None) -> None:
        beside = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        self._environment = {**os.environ, **beside, **(environment or {}), "PWD": str(directory)}
        self._notes = directory / ".terminal"
        self._notes.mkdir(parents=True)
        self._servers: dict[str, _Group] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for name in reversed(list(self._servers)):
            self._end(name, signal.SIGTERM)

    def follow(self, block: Block) -> str:
        """Run a block, and give what it wrote to stdout; or start the server that it is.

        A server of the name of one that runs takes its place: that one ends first.
        """
        return self._start(block) if block.keeps_running else self._run(block)

    def said(self, server: str) -> str:
        """What a server has said so far, on stdout and stderr."""
        return (self._notes / f"{server}.log").read_text(errors="replace")

    def kill(self, server: str) -> None:
        """End a server with SIGKILL, as a crash would. It can be started again."""
        self._end(server, signal.SIGKILL)

    def _run(self, block: Block) -> str:
        said, told, left = (self._notes / name for name in ("stdout", "stderr", "environment"))
        with said.open("wb") as stdout, told.open("wb") as stderr:
            noted = f"{block.commands}\nenv -0 > {shlex.quote(str(left))}"
            status = self._launch(noted, stdout, stderr).end_within(RUN_SECONDS)
        output = said.read_text(errors="replace")
        everything = output + told.read_text(errors="replace")
        refused = bool(status) and re.search(block.fails, everything) is not None
        if not (refused if block.fails else status == 0):
            raise AssertionError(self._account(block, status, everything))
        if status == 0:
            lines = left.read_text().split("\0")
            self._environment = dict(line.split("=", 1) for line in lines if line)
        return output

    def _start(self, block: Block) -> str:
        name, deadline = block.keeps_running, time.monotonic() + READY_SECONDS
        if name in self._servers:
            self._end(name, signal.SIGTERM)
        # With a trap bash outlives the server, so that its end is the server's.
        with (self._notes / f"{name}.log").open("wb") as log:
            group = self._launch(f"trap : TERM\n{block.commands}", log, subprocess.STDOUT)
        self._servers[name] = group
        while not re.search(block.ready, self.said(name)):
            status = group.leader.poll()
            if status is not None or time.monotonic() > deadline:
                raise AssertionError(self._account(block, status, self.said(name)))
            time.sleep(0.1)
        return self.said(name)

    def _launch(self, commands: str, stdout: IO[bytes], stderr: IO[bytes] | int) -> "_Group":
        return _Group(
            subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", commands],
                cwd=self._environment["PWD"],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
        )

    def _end(self, server: str, how: signal.Signals) -> None:
        group = self._servers.pop(server)
        group.signal(how)
        group.end_within(END_SECONDS)

    def _account(self, block: Block, status: int | None, output: str) -> str:
        ended = "is not done" if status is None else f"ended with {status}"
        servers = (f"--- {name}\n{self.said(name)[-2000:]}" for name in self._servers)
        return "\n".join([f"{block.place} {ended}", block.commands, "--- it said", output, *servers])


@dataclass(frozen=True)
class _Group:
    """A process and those that it started."""

    leader: subprocess.Popen[bytes]

    def signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.leader.pid, number)

    def end_within(self, seconds: float) -> int | None:
        """The leader's status if it ends in time; those that have not ended are killed."""
        try:
            return self.leader.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            self.signal(signal.SIGKILL)
            self.leader.wait()
