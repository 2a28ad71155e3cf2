"""Abuse of the gRPC door: many slow connections, and messages that are none.

python -m benchmarks.grpc_abuse --json benchmarks/results/grpc_abuse.json
"""

from __future__ import annotations

import json
import re
import socket
import struct
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

import click
import grpc
import numpy as np

from benchmarks.grpc_door import Record, method, milliseconds, own_channel, share
from benchmarks.served import Ground, answer, free_port, prepare, serving_process
from common.grpc_codec import Resume, encode_fetch_probe, encode_fetch_subnetwork
from common.proto_codec import MAX_MESSAGE_BYTES, encode_task_description
from common.tables import show
from server.library import Library

CHANNELS = 4
MAX_REFUSAL_MS = 50

# --- slow connections


def slow(ground: Ground, connections: int, seconds: float) -> Record:
    """Latency of a device's requests while so many connections dribble, a quarter of every kind."""
    lot = np.random.default_rng(5)
    metrics = f"127.0.0.1:{free_port()}"
    with serving_process(ground, "--metrics", metrics) as server, ExitStack() as open:
        channel = open.enter_context(grpc.insecure_channel(server.address))
        assign = channel.unary_unary(method("Assign"))
        quiet = [milliseconds(lambda: assign(ground.request(lot))) for _ in range(200)]
        before = server.memory_kilobytes()
        task = ground.task(lot)
        assign(encode_task_description(task))
        fetch = encode_fetch_subnetwork(task.request_id, None)
        kinds = (
            lambda: SlowConnection(server.address),
            lambda: SlowConnection(server.address).speak(),
            lambda: SlowConnection(server.address).speak().begin(method("Assign"), 100_000),
            lambda: SlowConnection(server.address).speak().ask(method("FetchSubNetwork"), fetch),
        )
        held = [
            open.enter_context(closing(kinds[number % len(kinds)]())) for number in range(connections)
        ]
        loud, began, turn = [], time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            for connection in held[turn % 20 :: 20]:
                connection.dribble()
            turn += 1
            loud.append(milliseconds(lambda: assign(ground.request(lot))))
        during, running = server.memory_kilobytes(), _calls_running(metrics)
        alive = sum(connection.alive for connection in held)
    return {
        "connections": connections,
        "open_at_the_end": alive,
        "calls_running_at_the_end": running,
        "calls": len(loud),
        "p99_ms_before": share(quiet, 0.99),
        "p50_ms": share(loud, 0.5),
        "p99_ms": share(loud, 0.99),
        "max_ms": max(loud),
        "kilobytes_before": before,
        "kilobytes_during": during,
    }


def _calls_running(metrics: str) -> float:
    """What the server itself says of calls in progress."""
    text = build_opener(ProxyHandler({})).open(f"http://{metrics}/metrics", timeout=10).read().decode()
    return sum(float(value) for value in re.findall(r"^maskvote_calls_running{.*} (.*)$", text, re.M))


class SlowConnection:
    """HTTP/2 by hand, as no client of gRPC would be so slow: it says what it is told to and waits."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)))
        self._socket.setblocking(False)
        self._sends_data = False
        self.alive = True

    def speak(self) -> SlowConnection:
        """The preface, and settings that let nothing of a stream come back: a window of no bytes."""
        window = (4).to_bytes(2, "big") + (0).to_bytes(4, "big")
        self._send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(4, 0, 0, window))
        return self

    def begin(self, path: str, announced: int) -> SlowConnection:
        """A call whose message of so many bytes is announced and comes one byte at a time."""
        self._send(
            _frame(1, 4, 1, _headers(path)) + _frame(0, 0, 1, b"\0" + announced.to_bytes(4, "big"))
        )
        self._sends_data = True
        return self

    def ask(self, path: str, message: bytes) -> SlowConnection:
        """A call whose answer is never read."""
        data = b"\0" + len(message).to_bytes(4, "big") + message
        self._send(_frame(1, 4, 1, _headers(path)) + _frame(0, 1, 1, data))
        return self

    def dribble(self) -> None:
        """Send the next byte, and read what has come."""
        if self._sends_data:
            self._send(_frame(0, 0, 1, b"\0"))
        try:
            if self._socket.recv(65536) == b"":
                self.alive = False
        except BlockingIOError:
            pass
        except OSError:
            self.alive = False

    def _send(self, data: bytes) -> None:
        try:
            self._socket.send(data)
        except OSError:
            self.alive = False

    def close(self) -> None:
        """Hang up, and refuse what is on its way."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def _headers(path: str) -> bytes:
    """A request's headers in HPACK: literal, not indexed, not compressed."""
    headers = {
        ":method": "POST", ":scheme": "http", ":path": path, ":authority": "localhost",
        "content-type": "application/grpc", "te": "trailers",
    }  # fmt: skip
    texts = [[name.encode(), value.encode()] for name, value in headers.items()]
    return b"".join(b"\0" + b"".join(bytes([len(t)]) + t for t in pair) for pair in texts)


# --- bad input


def fuzz(ground: Ground, inputs: int) -> Record:
    """Malformed messages, from all clients at once: every one gets a status, and nothing is stored."""
    lot = np.random.default_rng(6)
    with Library.open(ground.library) as library:
        before = library.statistics()
    with serving_process(ground) as server, ExitStack() as open:
        channels = [open.enter_context(own_channel(server)) for _ in range(CHANNELS)]
        sound = _sound_messages(ground, lot, channels[0])
        kilobytes, cpu = [server.memory_kilobytes()], server.cpu_seconds()
        statuses: Counter[str] = Counter()
        slowest = 0.0
        lock = threading.Lock()

        def client(number: int) -> None:
            nonlocal slowest
            own = np.random.default_rng([7, number])
            calls = {name: channels[number].stream_stream(method(name)) for name in sound}
            for _ in range(inputs // len(channels)):
                name = own.choice(list(sound))
                message = damaged(sound[name], own)
                began = time.perf_counter()
                try:
                    deque(calls[name](iter([message]), timeout=30), maxlen=0)
                    status = "OK"
                except grpc.RpcError as error:
                    status = error.code().name
                took = time.perf_counter() - began
                with lock:
                    statuses[f"{name} {status}"] += 1
                    slowest = max(slowest, took)

        with ThreadPoolExecutor(len(channels)) as threads:
            list(threads.map(client, range(len(channels))))
        kilobytes.append(server.memory_kilobytes())
        cpu = server.cpu_seconds() - cpu
        alive = server.process.poll() is None
    with Library.open(ground.library) as library:
        after = library.statistics()
        damaged_rows = len(library.damaged)
    return {
        "inputs": inputs,
        "statuses": dict(sorted(statuses.items())),
        "slowest_ms": 1000 * slowest,
        "server_cpu_ms_per_input": 1000 * cpu / inputs,
        "kilobytes": kilobytes,
        "alive": alive,
        "entries_added": after.voting - before.voting,
        "requests_added": after.unanswered - before.unanswered,
        "damaged_rows": damaged_rows,
    }


def _sound_messages(ground: Ground, lot: np.random.Generator, channel: grpc.Channel) -> dict[str, bytes]:
    """One message of every method that a server accepts."""
    task = ground.task(lot)
    request = encode_task_description(task)
    channel.unary_unary(method("Assign"))(request)
    with Library.open(ground.library) as library:
        stored = library.assignment_of(task.request_id)
    assert stored is not None
    resume = Resume("ab" * 32, 1000)
    return {
        "GetOffer": b"",
        "FetchProbe": encode_fetch_probe(resume),
        "Assign": request,
        "FetchSubNetwork": encode_fetch_subnetwork(task.request_id, resume),
        "Record": answer(stored.mask, task.request_id, stored.target),
    }


def damaged(message: bytes, lot: np.random.Generator) -> bytes:
    """A message with one to four faults: bits, bytes, lengths, pieces lost, repeated or put elsewhere."""
    data = bytearray(message)
    for _ in range(lot.integers(1, 5)):
        at, other = (int(lot.integers(0, len(data) + 1)) for _ in range(2))
        some = lot.bytes(int(lot.integers(1, 16)))
        fault = lot.integers(0, 8)
        if fault == 0 and data:
            data[at % len(data)] ^= 1 << int(lot.integers(0, 8))
        elif fault == 1 and data:
            data[at % len(data)] = int(lot.choice([0, 0x7F, 0x80, 0xFF]))
        elif fault == 2:
            data[at:at] = some
        elif fault == 3:
            del data[at:]
        elif fault == 4:
            del data[min(at, other) : max(at, other)]
        elif fault == 5:
            data[at:at] = data[min(at, other) : max(at, other)][:4096]
        elif fault == 6:
            data[at:at] = b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"
        else:
            data = bytearray(some * int(lot.integers(1, 300)))
    if lot.integers(0, 5000) == 0:
        data += bytes(MAX_MESSAGE_BYTES)
    return bytes(data)


@click.command()
@click.option("--connections", default=1000, show_default=True)
@click.option("--seconds", default=20.0, show_default=True)
@click.option("--inputs", default=100_000, show_default=True)
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write the record here.")
def main(connections: int, seconds: float, inputs: int, out: Path | None) -> None:
    """Abuse a server, and say how it bears it; the exit status is 1 if it does not."""
    record: dict[str, Record] = {}
    with tempfile.TemporaryDirectory() as place:
        ground = prepare(Path(place), entries=100)
        record["slow"] = slow(ground, connections, seconds)
        record["fuzz"] = fuzz(ground, inputs)
    if out is not None:
        out.write_text(json.dumps(record, indent=1) + "\n")
    for name, values in record.items():
        rows = [[key, f"{value:,.3f}" if isinstance(value, float) else str(value)]
                for key, value in values.items()]  # fmt: skip
        show(name, ["what", "value"], rows)
    raise SystemExit("; ".join(_not_borne(record)) or 0)


def _not_borne(record: Mapping[str, Record]) -> list[str]:
    slow, fuzz = record["slow"], record["fuzz"]
    assigned = fuzz["statuses"].get("Assign OK", 0)
    rules = (
        (slow["p99_ms"] < 1000, f"p99 of {slow['p99_ms']:.0f} ms beside slow connections"),
        (fuzz["alive"], "the server ended"),
        (fuzz["server_cpu_ms_per_input"] < MAX_REFUSAL_MS, "refusing costs too much"),
        (fuzz["requests_added"] <= assigned, f"{fuzz['requests_added']} requests stored"),
        (fuzz["entries_added"] <= 1, f"{fuzz['entries_added']} entries stored"),
        (not fuzz["damaged_rows"], f"{fuzz['damaged_rows']} damaged rows"),
    )
    return [sentence for holds, sentence in rules if not holds]


if __name__ == "__main__":
    main()
