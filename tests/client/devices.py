"""Devices that reach a server on the loopback."""

from contextlib import contextmanager
from pathlib import Path

from client.grpc_client import Connection, RemoteCoordinator
from common.exchange import Budget

SMALL, WHOLE = Budget(keep_ratio=0.3), Budget(keep_ratio=1.0)


@contextmanager
def remote(port: int, downloads: Path, **changes):
    downloads.mkdir(exist_ok=True)
    connection = changes.pop("connection", None) or Connection(f"127.0.0.1:{port}")
    with RemoteCoordinator(connection, downloads, **{"patience_seconds": 0, **changes}) as coordinator:
        yield coordinator
