"""What the janitor counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_LAG_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 60, 600)


class Metrics:
    """The janitor's own metrics, in a registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.lag = Histogram(
            "mayfly_janitor_lag_seconds",
            "From the end of a lease until everything was removed",
            buckets=_LAG_BUCKETS,
            registry=registry,
        )
        self.outcomes = Counter(
            "mayfly_janitor_outcomes_total",
            "What became of reclaimed things",
            ["owner", "result"],
            registry=registry,
        )
        self.unverified = Counter(
            "mayfly_janitor_residue_total",
            "Looks at the world that found something left, or could not look",
            registry=registry,
        )
        self.orphans = Counter(
            "mayfly_janitor_orphans_total",
            "Orphans that sweeps found",
            ["owner", "removed"],
            registry=registry,
        )

    def gauge(self, name: str, what: str, read: Callable[[], float]) -> None:
        """Add a gauge that is read when it is scraped."""
        Gauge(name, what, registry=self.registry).set_function(read)
