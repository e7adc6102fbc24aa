"""What a server counts, for Prometheus. Routes and the feed call the methods; a scrape asks engine and store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from rookery.errors import RookeryError

FIRST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)  # seconds; a CPU reads for long
BETWEEN = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
NOW = {"running", "reading", "waiting", "places", "snapshots", "bytes"}  # all other stats are totals

Stats = Callable[[], Mapping[str, int]]


class Metrics:
    """One server's own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "rookery_requests", "Requests answered", ("method", "route", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "rookery_request_seconds",
            "From a request to the end of its answer",
            ("route",),
            buckets=FIRST,
            registry=self.registry,
        )
        self.in_flight = Gauge("rookery_requests_in_flight", "Requests being answered", registry=self.registry)
        self._cached = Counter("rookery_prompt_tokens_cached", "Prompt tokens not read anew", registry=self.registry)
        self._prompt = Counter("rookery_prompt_tokens", "Prompt tokens asked for", registry=self.registry)
        self._queue = _histogram("queue_seconds", "From a sequence's arrival to its first step", FIRST, self.registry)
        self._first = _histogram("first_token_seconds", "From its arrival to its first token", FIRST, self.registry)
        self._between = _histogram("between_tokens_seconds", "From one token to the next", BETWEEN, self.registry)
        self._ended = Counter("rookery_replies", "Replies by what ended them", ("reason",), registry=self.registry)

    def prompt(self, tokens: int, cached: int) -> None:
        """A prompt of so many tokens came, so many of which were known."""
        self._prompt.inc(tokens)
        self._cached.inc(cached)

    def sequence(self) -> Clock:
        """The times of one sequence from now on."""
        return Clock(self._queue, self._first, self._between, self._ended)

    def watch(self, state_bytes: int, **sources: Stats) -> None:
        """Show the counts of the engine, the store, ... too, and the size of one sequence's state."""
        self.registry.register(_Stats(state_bytes, sources))

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)


class Clock:
    """Call what happens, when it happens; from one thread at a time."""

    def __init__(self, queue: Histogram, first: Histogram, between: Histogram, ended: Counter) -> None:
        self._queue, self._first, self._between, self._ended = queue, first, between, ended
        self._begin, self._running, self._last = time.perf_counter(), False, 0.0

    def read(self) -> None:
        """Tokens of its prompt were read."""
        if not self._running:
            self._running = True
            self._queue.observe(time.perf_counter() - self._begin)

    def wrote(self) -> None:
        """It wrote a token."""
        self.read()
        now = time.perf_counter()
        if self._last:
            self._between.observe(now - self._last)
        else:
            self._first.observe(now - self._begin)
        self._last = now

    def ended(self, reason: str) -> None:
        """end, stop, length, cancelled or failed."""
        self._ended.labels(reason).inc()


class _Stats(Collector):
    def __init__(self, state_bytes: int, sources: Mapping[str, Stats]) -> None:
        self._state_bytes, self._sources = state_bytes, sources

    def describe(self) -> list[Metric]:
        return []  # nothing is asked before the first scrape

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("rookery_state_bytes", "One sequence's state", value=self._state_bytes)
        for source, stats in self._sources.items():
            try:
                found = stats()
            except RookeryError:  # a store that cannot be reached: the rest is wanted all the more
                found = {}
            yield GaugeMetricFamily(f"rookery_{source}_up", f"{source}: whether it answers", value=bool(found))
            for name, value in found.items():
                family = GaugeMetricFamily if name in NOW else CounterMetricFamily
                yield family(f"rookery_{source}_{name}", f"{source}: {name.replace('_', ' ')}", value=value)


def _histogram(name: str, what: str, buckets: tuple[float, ...], registry: CollectorRegistry) -> Histogram:
    return Histogram(f"rookery_{name}", what, buckets=buckets, registry=registry)
