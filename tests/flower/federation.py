"""A SuperLink and its SuperNodes on the loopback, in processes of their own, as in a deployment."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

BIN = Path(sys.executable).parent

ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
    "OMP_NUM_THREADS": "1",
    "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
}


class Federation:
    """A running federation, to which apps can be submitted."""

    def __init__(self, directory: Path, port: int) -> None:
        directory.mkdir()
        (directory / "config.toml").write_text(
            '[superlink]\ndefault = "here"\n'
            f'[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
        )
        self._environment = os.environ | ENVIRONMENT | {"FLWR_HOME": str(directory)}

    def run(self, app: Path, run_config: str, timeout_seconds: float) -> tuple[str, str]:
        """Submit an app; its status in the end (or in the middle, if it takes too long), and its log.

        `flwr run` exits with 0 whether the run fails or not: only its status tells.
        """
        submitted = self._flwr("run", str(app), "here", "--format", "json", "-c", run_config)
        try:
            run_id = str(json.loads(submitted.stdout)["run-id"])
        except (ValueError, KeyError):
            return "not submitted", submitted.stdout + submitted.stderr
        status, deadline = "", time.monotonic() + timeout_seconds
        while not status.startswith("finished") and time.monotonic() < deadline:
            time.sleep(3)  # each look is a process that takes a second of a core
            listed = self._flwr("ls", "here", "--run-id", run_id, "--format", "json")
            status = json.loads(listed.stdout)["runs"][0]["status"]
        return status, self._flwr("log", run_id, "here", "--show").stdout

    def _flwr(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(BIN / "flwr"), *arguments]
        return subprocess.run(command, env=self._environment, capture_output=True, text=True, timeout=60)


@contextlib.contextmanager
def federation(directory: Path, node_configs: Sequence[str]) -> Iterator[Federation]:
    """Start a SuperLink and one SuperNode for each node configuration; end them all afterwards."""
    directory.mkdir()
    port = _free_port()
    with contextlib.ExitStack() as running:
        link = ["flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port)]
        superlink = running.enter_context(_process(directory / "superlink", link))
        _wait_for(f"http://127.0.0.1:{port}/health", superlink, directory / "superlink" / "log.txt")
        for number, node_config in enumerate(node_configs):
            node = [
                "flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}",
                "--port", str(_free_port()), "--node-config", node_config,
            ]  # fmt: skip
            running.enter_context(_process(directory / f"node{number}", node))
        yield Federation(directory / "cli", port)


@contextlib.contextmanager
def _process(home: Path, command: list[str]) -> Iterator[subprocess.Popen]:
    """A process, with its children, in a directory of its own; `log.txt` there is what it says."""
    home.mkdir()
    with (home / "log.txt").open("w") as log:
        process = subprocess.Popen(
            [str(BIN / command[0]), *command[1:]],
            cwd=home,
            env=os.environ | ENVIRONMENT | {"FLWR_HOME": str(home / ".flwr")},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(8)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _wait_for(url: str, process: subprocess.Popen, log: Path, timeout_seconds: float = 60) -> None:
    deadline = time.monotonic() + timeout_seconds
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        try:
            direct.open(url, timeout=1).close()
            return
        except OSError as error:
            if time.monotonic() > deadline or process.poll() is not None:
                raise RuntimeError(f"{url} does not answer: {log.read_text()}") from error
            time.sleep(0.1)
