"""What Prometheus reads at /metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector
from treadle.serving.capture import Capture
from treadle.serving.router import Follower, Router

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Metrics:
    """An app's counters. Children are looked up once: `labels()` costs more than counting."""

    def __init__(self, router: Router, capture: Capture | None, follower: Follower | None) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "treadle_requests", "Requests to /invocations by HTTP status", ["status"], registry=self.registry
        )
        self._errors = Counter(
            "treadle_request_errors",
            "Requests refused or failed, by error code",
            ["code"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "treadle_request_seconds",
            "Seconds from request to answer",
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._rows = Counter("treadle_rows", "Rows predicted", registry=self.registry)
        self._unseen = Counter(
            "treadle_unseen_categories", "Categories the model never saw", ["feature"], registry=self.registry
        )
        self._by_status: dict[int, Any] = {}
        self.registry.register(_State(router, capture, follower))

    def answered(self, status: int, seconds: float) -> None:
        """Counts a request."""
        child = self._by_status.get(status)
        if child is None:
            child = self._by_status[status] = self._requests.labels(str(status))
        child.inc()
        self._seconds.observe(seconds)

    def predicted(self, rows: int, unseen: Mapping[str, int]) -> None:
        """Counts rows, and categories that became missing values."""
        self._rows.inc(rows)
        for feature, count in unseen.items():
            self._unseen.labels(feature).inc(count)

    def refused(self, code: str) -> None:
        """Counts a request that got an error."""
        self._errors.labels(code).inc()

    def exposition(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)


class _State(Collector):
    """What router, follower and capture know, read when asked."""

    def __init__(self, router: Router, capture: Capture | None, follower: Follower | None) -> None:
        self._router, self._capture, self._follower = router, capture, follower

    def collect(self) -> Iterator[Metric]:
        """See Collector."""
        model = GaugeMetricFamily(
            "treadle_model_info", "What serves, by its share", labels=["loop", "version", "digest"]
        )
        for variant in self._router.serving:
            model.add_metric([self._router.name, str(variant.version), variant.candidate], variant.weight)
        yield model
        yield CounterMetricFamily("treadle_swaps", "Changes of what serves", value=self._router.swaps)
        if self._follower is not None:
            yield CounterMetricFamily(
                "treadle_follow_failures",
                "Times the release log or a new model could not be read",
                value=self._follower.failures,
            )
        if self._capture is not None:
            for name, text, value in (
                ("rows", "Predictions written to the store", self._capture.written),
                ("dropped_rows", "Predictions not captured", self._capture.dropped),
                ("failures", "Times writing captures failed", self._capture.failures),
            ):
                yield CounterMetricFamily(f"treadle_capture_{name}", text, value=value)
