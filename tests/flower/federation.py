"""A SuperLink and its SuperNodes on the loopback, in processes of their own, as in a deployment."""

import contextlib
import json
import shlex
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from documents import Block, Terminal, free_ports

SUPERLINK = "superlink"

ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
    "NO_PROXY": "localhost,127.0.0.1",
    "OMP_NUM_THREADS": "1",
}
"""For tests: nobody on the network is asked for anything, and little time is spent waiting."""


class Federation:
    """A federation that is run from a terminal: its server can be killed, apps can be submitted."""

    def __init__(self, terminal: Terminal, directory: Path) -> None:
        (self._port,) = free_ports(1)
        self._terminal = terminal
        (directory / "config.toml").write_text(
            '[superlink]\ndefault = "here"\n'
            f'[superlink.here]\naddress = "127.0.0.1:{self._port}"\ninsecure = true\n'
        )

    def start_superlink(self) -> None:
        """Start the SuperLink, or start it again: it remembers its SuperNodes and runs."""
        self._terminal.follow(
            Block(
                f"flower-superlink --insecure --host 127.0.0.1 --port {self._port} "
                "--database superlink.db --disable-runtime-dependency-installation",
                keeps_running=SUPERLINK,
                ready="Uvicorn running",
            )
        )

    def kill_superlink(self) -> None:
        """End the SuperLink with SIGKILL."""
        self._terminal.kill(SUPERLINK)

    def start_supernode(self, name: str, node_config: str) -> None:
        """Start a SuperNode, with a Flower home of its own."""
        (port,) = free_ports(1)
        self._terminal.follow(
            Block(
                f"FLWR_HOME=$PWD/{name} flower-supernode --insecure --superlink 127.0.0.1:{self._port} "
                f"--port {port} --node-config {shlex.quote(node_config)}",
                keeps_running=name,
                ready="SuperNode ID",
            )
        )

    def submit(self, app: Path, run_config: str) -> str:
        """Begin a run of an app; its id."""
        words = ["run", str(app), "here", "--format", "json", "-c", run_config]
        return str(json.loads(self._flwr(*words))["run-id"])

    def finish(self, run: str, timeout_seconds: float) -> tuple[str, str]:
        """A run's status in the end (or in the middle, if it takes too long), and its log."""
        status, deadline = "", time.monotonic() + timeout_seconds
        while not status.startswith("finished") and time.monotonic() < deadline:
            time.sleep(3)  # each look is a process that takes a second of a core
            listed = self._flwr("ls", "here", "--run-id", run, "--format", "json")
            status = json.loads(listed)["runs"][0]["status"]
        return status, self._flwr("log", run, "here", "--show")

    def _flwr(self, *words: str) -> str:
        return self._terminal.follow(Block(shlex.join(["flwr", *words])))


@contextlib.contextmanager
def federation(directory: Path, node_configs: Sequence[str]) -> Iterator[Federation]:
    """Start a SuperLink and one SuperNode for each node configuration; end them all afterwards."""
    with Terminal(directory, ENVIRONMENT | {"FLWR_HOME": str(directory)}) as terminal:
        running = Federation(terminal, directory)
        running.start_superlink()
        for number, node_config in enumerate(node_configs):
            running.start_supernode(f"node{number}", node_config)
        yield running
