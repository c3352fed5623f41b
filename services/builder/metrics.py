"""Prometheus metrics of the builder."""

from __future__ import annotations

from mayfly.v1.build_pb2 import Build
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """What the builder counts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._builds = Counter(
            "mayfly_builder_builds",
            "Builds that ended, by runtime and outcome",
            ["runtime", "outcome"],
            registry=registry,
        )
        self._seconds = Histogram(
            "mayfly_builder_build_seconds",
            "From a build's start to its end",
            ["runtime"],
            buckets=_BUCKETS,
            registry=registry,
        )
        self.rows = Gauge(
            "mayfly_builder_rows",
            "Builds that are queued and running, and environments that exist",
            ["kind"],
            registry=registry,
        )

    def ended(self, build: Build) -> None:
        """Count a build that has ended."""
        outcome = build.failure.reason or "SUCCEEDED"
        self._builds.labels(build.runtime, outcome).inc()
        seconds = sum(step.duration.ToTimedelta().total_seconds() for step in build.steps)
        self._seconds.labels(build.runtime).observe(seconds)
