"""Metrics of one service for Prometheus, with plain methods for those who count."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.samples import Sample

CONTENT_TYPE = CONTENT_TYPE_LATEST
_LATENCY_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
COMMIT_BUCKETS_S = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024)
"""Upper bounds of the classes that commits are counted in by how long they took; one more is
open."""
THROTTLE = "throttle"
"""The kind of retry that means that the store had no units left (`storage.retries.Kind`)."""


class Metrics:
    """The counters of one service. Each has its own registry, so several fit in one process.

    All methods are cheap, never block and never raise.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self._requests = self._counter(
            "tidings_requests", "Requests by route and status.", ("route", "status")
        )
        self._latency = Histogram(
            "tidings_request_seconds",
            "Time to answer, by route; streams and polls are not in it.",
            ("route",),
            buckets=_LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self._commits = self._counter("tidings_commits", "Commits to rooms.")
        self._commit_seconds = Histogram(
            "tidings_commit_seconds",
            "Time from taking commands up to their being durable.",
            buckets=COMMIT_BUCKETS_S,
            registry=self.registry,
        )
        self._units = self._counter(
            "tidings_units",
            "DynamoDB units that calls and commits took: read, write. What sockets commit on the "
            "embedded store is sampled; what nodes spend on themselves is not in it.",
            ("kind",),
        )
        self._read_units = self._units.labels("read")
        self._write_units = self._units.labels("write")
        self._entries = self._counter("tidings_entries", "Entries appended to logs.")
        self._deliveries = self._counter(
            "tidings_deliveries", "Updates handed to connections, by way.", ("way",)
        )
        self._connections = Gauge(
            "tidings_connections",
            "Open connections, by way.",
            ("way",),
            registry=self.registry,
        )
        self._overflows = self._counter(
            "tidings_outbox_overflows", "Connections closed because they did not read."
        )
        self._batches = Histogram(
            "tidings_store_batch_sets",
            "Write sets in one transaction of the store.",
            buckets=_BATCH_BUCKETS,
            registry=self.registry,
        )
        self._retries = self._counter(
            "tidings_store_retries", "Calls to the store made again, by what went wrong.", ("kind",)
        )
        self._faults = self._counter(
            "tidings_faults_injected",
            "Faults injected on purpose, by table and kind.",
            ("table", "kind"),
        )
        self._shadow_reads = self._counter(
            "tidings_shadow_reads",
            "Reads that both stores of a move were asked: same, different.",
            ("outcome",),
        )
        self._bus_messages = self._counter(
            "tidings_bus_messages", "Messages between nodes: sent, received, dropped.", ("fate",)
        )
        self._bus_by_fate = {
            fate: self._bus_messages.labels(fate) for fate in ("sent", "received", "dropped")
        }
        self._bus_gaps = self._counter(
            "tidings_bus_gaps", "Times when messages of other nodes may have been lost."
        )
        self._mends = self._counter(
            "tidings_mends", "Connections that missed something and were told from the store."
        )
        self._pushes = self._counter(
            "tidings_pushes",
            "Pushes by kind: sent, retried, failed, refused, or gone with their subscription.",
            ("kind", "fate"),
        )
        self._errors = self._counter("tidings_errors", "Unexpected errors, by place.", ("place",))
        self._by_status: dict[tuple[str, int], Counter] = {}
        self._by_route: dict[str, Histogram] = {}
        self._by_way: dict[str, Counter] = {}

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def request(self, route: str, status: int, duration_s: float | None) -> None:
        """One request was answered; `route` is its template, the duration None for a stream."""
        counter = self._by_status.get((route, status))
        if counter is None:
            counter = self._requests.labels(route, str(status))
            self._by_status[route, status] = counter
        counter.inc()
        if duration_s is not None:
            histogram = self._by_route.get(route)
            if histogram is None:
                histogram = self._by_route[route] = self._latency.labels(route)
            histogram.observe(duration_s)

    def commit(self, entries: int, duration_s: float) -> None:
        """One commit to a room, how many entries it appended, and how long it took."""
        self._commits.inc()
        self._entries.inc(entries)
        self._commit_seconds.observe(duration_s)

    def spent(self, read_units: float, write_units: float) -> None:
        """Units were taken of the store."""
        self._read_units.inc(read_units)
        self._write_units.inc(write_units)

    def delivered(self, way: str, updates: int) -> None:
        """Updates were handed to a connection of `websocket`, `events` or `poll`."""
        counter = self._by_way.get(way)
        if counter is None:
            counter = self._by_way[way] = self._deliveries.labels(way)
        counter.inc(updates)

    def connected(self, way: str) -> None:
        """A connection opened."""
        self._connections.labels(way).inc()

    def disconnected(self, way: str) -> None:
        """A connection closed."""
        self._connections.labels(way).dec()

    def overflowed(self) -> None:
        """A connection was closed because it did not read."""
        self._overflows.inc()

    def bus(self, fate: str, messages: int) -> None:
        """Messages between nodes were `sent`, `received` or `dropped`."""
        self._bus_by_fate[fate].inc(messages)

    def bus_gap(self) -> None:
        """Messages of other nodes may have been lost."""
        self._bus_gaps.inc()

    def mended(self) -> None:
        """A connection that missed something was told from the store."""
        self._mends.inc()

    def pushed(self, kind: str, fate: str) -> None:
        """A push was `sent`, `retried`, `failed`, `refused`, or its subscription was `gone`."""
        self._pushes.labels(kind, fate).inc()

    def store_batch(self, sets: int) -> None:
        """The store committed one transaction of that many write sets."""
        self._batches.observe(sets)

    def store_retry(self, kind: str) -> None:
        """A call to the store is made again; `kind` is a `tidings.storage.retries.Kind`."""
        self._retries.labels(kind).inc()

    def fault_injected(self, table: str, kind: str) -> None:
        """A call failed on purpose; `kind` is a `tidings.storage.faults.Fault`."""
        self._faults.labels(table, kind).inc()

    def shadow_read(self, is_same: bool) -> None:
        """Both stores of a move answered the same read; `is_same` in the end, or not."""
        self._shadow_reads.labels("same" if is_same else "different").inc()

    def unexpected(self, place: str) -> None:
        """Something failed that nobody foresaw; the log has it."""
        self._errors.labels(place).inc()

    def watch(self, name: str, text: str, read: Callable[[], float]) -> None:
        """A value that is read whenever the metrics are."""
        Gauge(name, text, registry=self.registry).set_function(read)

    def figures(self) -> dict[str, float | list[float]]:
        """What this process did since it started, for pages that draw it.

        Numbers of which all but `connections` only grow. `commits` holds a number for each of
        COMMIT_BUCKETS_S and one for those that took longer.
        """
        # Histograms count each class with those below it.
        upto = [
            sample.value
            for sample in _samples(self._commit_seconds)
            if sample.name.endswith("_bucket")
        ]
        return {
            "messages": _total(self._entries),
            "deliveries": _total(self._deliveries),
            "connections": sum(sample.value for sample in _samples(self._connections)),
            "commits": [count - below for below, count in zip([0.0, *upto], upto, strict=False)],
            "retries": _total(self._retries),
            "throttles": _total(self._retries, kind=THROTTLE),
            "errors": _total(self._errors),
            "read_units": round(_total(self._units, kind="read"), 1),
            "write_units": round(_total(self._units, kind="write"), 1),
        }

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)


def _samples(metric: Counter | Gauge | Histogram) -> Iterable[Sample]:
    return (sample for family in metric.collect() for sample in family.samples)


def _total(counter: Counter, **labels: str) -> float:
    """The sum over all labels that are not given."""
    return sum(
        sample.value
        for sample in _samples(counter)
        if sample.name.endswith("_total") and labels.items() <= sample.labels.items()
    )
