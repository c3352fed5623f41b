"""The gateway's own figures for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Gauge


def register(
    registry: CollectorRegistry, figures: dict[str, tuple[str, Callable[[], int]]]
) -> None:
    """Register figures by name: what each says, and how it is read when it is asked for."""
    for name, (meaning, read) in figures.items():
        Gauge(f"mayfly_gateway_{name}", meaning, registry=registry).set_function(read)
