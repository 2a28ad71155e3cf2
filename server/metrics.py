"""Metrics: what Prometheus is told of the server's calls and of its library."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from common.errors import LibraryError
from server.entries import Statistics

if TYPE_CHECKING:
    from server.healing.healer import HealerStatistics

UP = "Whether the library can be read."
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 600)


class Metrics:
    """Numbers of one server, in a registry of their own."""

    def __init__(
        self,
        statistics: Callable[[], Statistics],
        healing: Callable[[], HealerStatistics] | None = None,
    ) -> None:
        """`statistics` are the library's, `healing` the healer's, asked for whenever somebody looks."""
        self.registry = CollectorRegistry()
        for process in (ProcessCollector, PlatformCollector, GCCollector):
            process(registry=self.registry)
        self.registry.register(_LibraryCollector(statistics))
        if healing is not None:
            self.registry.register(_HealerCollector(healing))

        self._calls = Counter(
            "maskvote_calls", "Calls that ended.", ["method", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "maskvote_call_seconds", "How long calls took.", ["method"],
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self._bytes = Counter(
            "maskvote_bytes", "Bytes of messages.", ["method", "direction"], registry=self.registry
        )
        self._running = Gauge(
            "maskvote_calls_running", "Calls in progress.", ["method"], registry=self.registry
        )

    @contextmanager
    def running(self, method: str) -> Iterator[None]:
        """A call in progress."""
        with self._running.labels(method).track_inprogress():
            yield

    def ended(self, method: str, status: str, seconds: float, received: int, sent: int) -> None:
        """A call that ended."""
        self._calls.labels(method, status).inc()
        self._seconds.labels(method).observe(seconds)
        self._bytes.labels(method, "received").inc(received)
        self._bytes.labels(method, "sent").inc(sent)


class _LibraryCollector:
    """The library's own numbers, read when they are asked for."""

    def __init__(self, statistics: Callable[[], Statistics]) -> None:
        self._statistics = statistics

    def collect(self) -> Iterator[GaugeMetricFamily]:
        try:
            statistics = self._statistics()
        except LibraryError:
            yield GaugeMetricFamily("maskvote_library_up", UP, value=0)
            return
        yield GaugeMetricFamily("maskvote_library_up", UP, value=1)
        for name, text, value in (
            ("entries_voting", "Entries that vote.", statistics.voting),
            ("entries_removed", "Entries that were removed.", statistics.removed),
            ("requests_unanswered", "Requests assigned and not recorded.", statistics.unanswered),
            ("file_bytes", "Size of the library's file.", statistics.file_bytes),
        ):
            yield GaugeMetricFamily(f"maskvote_library_{name}", text, value=value)


class _HealerCollector:
    """What the healer has done."""

    def __init__(self, statistics: Callable[[], HealerStatistics]) -> None:
        self._statistics = statistics

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        statistics = self._statistics()
        networks = CounterMetricFamily(
            "maskvote_healings", "Networks that were to be healed for one mask.", labels=["outcome"]
        )
        for outcome in ("healed", "stopped", "failed"):
            networks.add_metric([outcome], getattr(statistics, outcome))
        yield networks
        yield CounterMetricFamily("maskvote_healing_seconds", "Spent on them.", statistics.seconds)
        yield GaugeMetricFamily(
            "maskvote_healings_waiting", "Networks that devices wait for.", value=statistics.waiting
        )
