"""Devices that reach a server on the loopback, in this process or in one of their own."""

import multiprocessing
import os
import resource
import sys
from contextlib import contextmanager
from pathlib import Path

from client.grpc_client import Connection, RemoteCoordinator
from common.budget import Budget

SMALL, WHOLE = Budget(keep_ratio=0.3), Budget(keep_ratio=1.0)


@contextmanager
def remote(port: int, downloads: Path, **changes):
    downloads.mkdir(exist_ok=True)
    connection = changes.pop("connection", None) or Connection(f"127.0.0.1:{port}")
    with RemoteCoordinator(connection, downloads, **{"patience_seconds": 0, **changes}) as coordinator:
        yield coordinator


# What these import is what `maskvote-client` does, and nothing else.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["client.cli", "client.adapt_cli"])


def client_process(words: list[str], output: Path, largest_file: int | None = None):
    """A process of `maskvote-client`, whose output goes into a file, and whose files grow no larger."""
    process = processes.Process(target=_maskvote_client, args=(words, output, largest_file))
    process.start()
    return process


def _maskvote_client(words: list[str], output: Path, largest_file: int | None) -> None:
    from client.cli import main

    sys.argv = ["maskvote-client", *words]
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    main()
