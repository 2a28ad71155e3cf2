"""A TCP proxy on the loopback that cuts, stalls or garbles connections at a given byte."""

import socket
import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, Self

CHUNK_BYTES = 4096


@dataclass(frozen=True)
class Fault:
    """What befalls a connection once so many bytes have gone to its client."""

    kind: Literal["cut", "stall", "garble"]
    after: int


class FlakyProxy:
    """Passes connections on to a port of the loopback; every one takes the next of the faults, if any.

    `delivered` counts the bytes that went to clients, `connections` how many there were.
    """

    def __init__(self, port: int, *faults: Fault) -> None:
        self.upstream = port
        self.faults = deque(faults)
        self.delivered = self.connections = 0
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._start(self._accept)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for opened in (self._listener, *self._sockets):
            _end(opened)
        for thread in self._threads:
            thread.join()

    def _start(self, job, *arguments) -> None:
        thread = threading.Thread(target=job, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.connections += 1
                self._sockets.append(client)
                fault = self.faults.popleft() if self.faults else None
                try:
                    server = socket.create_connection(("127.0.0.1", self.upstream))
                except OSError:
                    _end(client)
                    continue
                self._sockets.append(server)
                self._start(self._up, client, server)
                self._start(self._down, server, client, fault)

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(CHUNK_BYTES):
                server.sendall(data)
        _end(server)

    def _down(self, server: socket.socket, client: socket.socket, fault: Fault | None) -> None:
        passed = 0
        with suppress(OSError):
            while data := server.recv(CHUNK_BYTES):
                if fault is not None and passed + len(data) > fault.after:
                    at = fault.after - passed
                    if fault.kind == "garble":
                        data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
                    else:
                        data = data[:at]
                client.sendall(data)
                passed += len(data)
                self.delivered += len(data)
                if fault is not None and passed >= fault.after:
                    if fault.kind == "stall":
                        return
                    if fault.kind == "cut":
                        break
                    fault = None
        _end(client)
        _end(server)


def _end(opened: socket.socket) -> None:
    """Close a socket that other threads may be waiting for."""
    with suppress(OSError):
        opened.shutdown(socket.SHUT_RDWR)
    opened.close()
