"""The gRPC door: what it adds to the coordinator, how many devices a second it serves, and what it bears.

    python -m benchmarks.grpc_door --json benchmarks/results/grpc_door.json
    python -m benchmarks.grpc_door overhead rates          # some of them

Every measurement has a server process of its own on the loopback; the peers are measured in the same run.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click
import grpc
import numpy as np

from benchmarks.served import Ground, Server, answer, prepare, serving_process
from client.grpc_client import Connection, RemoteCoordinator
from common.exchange import Contribution
from common.grpc_codec import (
    DEVICES,
    PART_BYTES,
    decode_announcement,
    decode_part,
    encode_fetch_subnetwork,
    full_name,
)
from common.mask import Mask
from common.proto_codec import encode_task_description
from common.tables import show
from server.coordinator import Coordinator
from server.library import Library

CLIENTS = 16
ENTRIES = 100
Record = dict[str, Any]


def method(name: str) -> str:
    return full_name(DEVICES.methods_by_name[name])


def own_channel(server: Server) -> grpc.Channel:
    """A connection that is shared with no other channel of this process."""
    return grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)])


def milliseconds(job: Callable[[], object]) -> float:
    began = time.perf_counter()
    job()
    return 1000 * (time.perf_counter() - began)


def share(values: Sequence[float], part: float) -> float:
    return float(np.quantile(np.array(values), part))


# --- overhead and throughput


def overhead(ground: Ground, rounds: int) -> Record:
    """One adaptation's calls through the door, and the same on a coordinator in this process.

    The offer, which a device needs once, is measured apart; to describe a task is the same on both sides.
    """
    lot = np.random.default_rng(1)
    with Library.open(ground.library) as library:
        coordinator = Coordinator(library, ground.weights)
        inside = [_adaptation(coordinator, ground, lot) for _ in range(rounds + 3)][3:]
    outside, first = [], []
    with serving_process(ground) as server, tempfile.TemporaryDirectory() as downloads:
        for number in range(rounds + 3):
            place = Path(downloads) / str(number)
            place.mkdir()
            remote = RemoteCoordinator(Connection(server.address), place)
            with remote:
                first.append(milliseconds(remote.offer))
                outside.append(_adaptation(remote, ground, lot))
    bare, ours = _streams(ground, rounds)
    record: Record = {
        "rounds": rounds,
        "in_process_ms": statistics.median(inside),
        "grpc_ms": statistics.median(outside[3:]),
        "first_offer_with_probe_ms": statistics.median(first[3:]),
        "overhead_ms": statistics.median(outside[3:]) - statistics.median(inside),
        "stream_bytes": ours["bytes"],
        "bare_megabytes_per_second": bare,
        "download_megabytes_per_second": ours["rate"],
        "verified_megabytes_per_second": ours["verified"],
        "throughput_ratio": ours["rate"] / bare,
        "verified_throughput_ratio": ours["verified"] / bare,
    }
    return record


def _adaptation(coordinator: Any, ground: Ground, lot: np.random.Generator) -> float:
    """Milliseconds of a new assignment with its network, and of its contribution."""
    task = ground.task(lot)
    began = time.perf_counter()
    assignment = coordinator.assign(task)
    mask = assignment.mask
    scores = {name: np.where(mask[name], 1.0, -1.0) for name in mask}
    kept = Mask.keep_top(mask.structure, scores, assignment.target)
    coordinator.record(Contribution(task.request_id, kept, 0.25, 0.75, 50))
    return 1000 * (time.perf_counter() - began)


def _streams(ground: Ground, rounds: int) -> tuple[float, dict[str, float]]:
    """MB/s of a bare grpcio server's stream, and of our download, of the same bytes by turns."""
    lot = np.random.default_rng(2)
    task = ground.task(lot)
    with (
        serving_process(ground) as server,
        tempfile.TemporaryDirectory() as downloads,
        ExitStack() as open,
    ):
        remote = open.enter_context(RemoteCoordinator(Connection(server.address), Path(downloads)))
        network = bytes(remote.assign(task).subnetwork.to_bytes())
        bare = open.enter_context(_bare_server(network))
        plain = open.enter_context(grpc.insecure_channel(server.address))
        rates: dict[str, list[float]] = {"bare": [], "ours": [], "verified": []}

        def fetch() -> None:
            parts = plain.unary_stream(method("FetchSubNetwork"))(
                encode_fetch_subnetwork(task.request_id, None)
            )
            announced, _ = decode_announcement(next(parts))
            assert sum(len(decode_part(part)) for part in parts) == announced.size == len(network)

        for _ in range(rounds):
            for name, job in (
                ("bare", lambda: sum(len(part) for part in bare(b""))),
                ("ours", fetch),
                ("verified", lambda: remote.assign(task)),
            ):
                rates[name].append(len(network) / milliseconds(job) / 1000)
    medians = {name: statistics.median(values[2:]) for name, values in rates.items()}
    return medians["bare"], {
        "bytes": len(network), "rate": medians["ours"], "verified": medians["verified"],
    }  # fmt: skip


@contextmanager
def _bare_server(data: bytes) -> Iterator[Callable]:
    """A grpcio server in a process of its own that streams these bytes in parts of our size."""
    program = (
        "import grpc, sys, threading\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        f"data = open(sys.argv[1], 'rb').read(); size = {PART_BYTES}\n"
        "class Handler(grpc.GenericRpcHandler):\n"
        "    def service(self, details):\n"
        "        return grpc.unary_stream_rpc_method_handler(lambda request, context: (\n"
        "            data[at : at + size] for at in range(0, len(data), size)))\n"
        "server = grpc.server(ThreadPoolExecutor(4))\n"
        "server.add_generic_rpc_handlers((Handler(),))\n"
        "print(server.add_insecure_port('127.0.0.1:0'), flush=True)\n"
        "server.start(); server.wait_for_termination()\n"
    )
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        process = subprocess.Popen(
            [sys.executable, "-c", program, file.name], stdout=subprocess.PIPE, text=True
        )
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                yield channel.unary_stream("/bare.Bare/Stream")
        finally:
            process.terminate()
            process.wait(10)


# --- rates, memory


def rates(ground: Ground, seconds: float) -> Record:
    """Assign and Record a second from 16 clients, each with a connection of its own."""
    lot = np.random.default_rng(3)
    with serving_process(ground) as server, ExitStack() as open:
        channels = [open.enter_context(own_channel(server)) for _ in range(CLIENTS)]
        asked = [ground.task(lot) for _ in range(int(1000 * seconds))]
        requests = [encode_task_description(task) for task in asked]
        assign = _hammer(channels, "Assign", requests, seconds)
        with Library.open(ground.library) as library:
            stored = filter(None, (library.assignment_of(task.request_id) for task in asked))
            contributions = [answer(one.mask, one.description.request_id, one.target) for one in stored]
            before = len(library)
            record = _hammer(channels, "Record", contributions, seconds)
            durable = len(library) - before
    assert durable == record["calls"], (durable, record)
    return {
        "clients": CLIENTS,
        **{f"assign_{key}": value for key, value in assign.items()},
        **{f"record_{key}": value for key, value in record.items()},
    }


def _hammer(
    channels: Sequence[grpc.Channel], name: str, messages: Sequence[bytes], seconds: float
) -> Record:
    """Send messages, each once, from all channels at once, until time or messages are out."""
    calls = [channel.unary_unary(method(name)) for channel in channels]
    following, lock = iter(messages), threading.Lock()
    took: list[float] = []
    end = time.perf_counter() + seconds

    def client(call: Callable) -> None:
        while time.perf_counter() < end:
            with lock:
                message = next(following, None)
            if message is None:
                return
            took.append(milliseconds(lambda message=message: call(message)))

    began = time.perf_counter()
    with ThreadPoolExecutor(len(calls)) as threads:
        list(threads.map(client, calls))
    elapsed = time.perf_counter() - began
    return {
        "calls": len(took),
        "seconds": elapsed,
        "per_second": len(took) / elapsed,
        "p50_ms": share(took, 0.5),
        "p99_ms": share(took, 0.99),
    }


def memory(ground: Ground, calls: int) -> Record:
    """Resident memory of the server over many calls of every kind that adds no entry."""
    lot = np.random.default_rng(4)
    with serving_process(ground) as server, grpc.insecure_channel(server.address) as channel:
        kilobytes = []
        fetch = channel.unary_stream(method("FetchSubNetwork"))
        assign = channel.unary_unary(method("Assign"))
        for number in range(calls + 1):
            if number % (calls // 20) == 0:
                kilobytes.append(server.memory_kilobytes())
            request = ground.request(lot)
            assign(request)
            if number % 10 == 0:
                list(fetch(encode_fetch_subnetwork(request[2:18].hex(), None)))
        peak = server.memory_kilobytes("VmHWM")
    warm = kilobytes[2:]
    return {
        "calls": calls,
        "kilobytes": kilobytes,
        "peak_kilobytes": peak,
        "spread": max(warm) / min(warm) - 1,
    }


# --- the command

LIMITS = (
    ("overhead", "overhead_ms", "at most", 50),
    ("overhead", "throughput_ratio", "at least", 0.5),
    ("rates", "assign_per_second", "at least", 200),
    ("rates", "record_per_second", "at least", 300),
    ("memory", "spread", "at most", 0.1),
)


@click.command()
@click.argument("what", nargs=-1, type=click.Choice(["overhead", "rates", "memory"]))
@click.option("--rounds", default=30, show_default=True)
@click.option("--seconds", default=10.0, show_default=True)
@click.option("--calls", default=10_000, show_default=True)
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write the record here.")
def main(what: tuple[str, ...], rounds: int, seconds: float, calls: int, out: Path | None) -> None:
    """Measure, and compare with the limits; the exit status is 1 where one is not kept."""
    record: dict[str, Record] = {}
    jobs: dict[str, Callable[[Ground], Record]] = {
        "overhead": lambda ground: overhead(ground, rounds),
        "rates": lambda ground: rates(ground, seconds),
        "memory": lambda ground: memory(ground, calls),
    }
    for name in what or jobs:
        with tempfile.TemporaryDirectory() as place:
            record[name] = jobs[name](prepare(Path(place), ENTRIES))
    if out is not None:
        out.write_text(json.dumps(record, indent=1) + "\n")
    for name, values in record.items():
        rows = [
            [key, f"{value:,.3f}" if isinstance(value, float) else str(value)]
            for key, value in values.items()
        ]
        show(name, ["what", "value"], rows)
    missed = [
        f"{key} is {record[name][key]:.3g}, {bound} {limit} was asked"
        for name, key, bound, limit in LIMITS
        if name in record
        and (record[name][key] > limit if bound == "at most" else record[name][key] < limit)
    ]
    raise SystemExit("; ".join(missed) or 0)


if __name__ == "__main__":
    main()
