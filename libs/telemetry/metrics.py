"""Prometheus metrics of one service, each with a registry of its own."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    GC_COLLECTOR,
    PLATFORM_COLLECTOR,
    PROCESS_COLLECTOR,
    CollectorRegistry,
    start_http_server,
)


def registry() -> CollectorRegistry:
    """Return a registry that holds the process's own figures; a service adds its own."""
    made = CollectorRegistry()
    for collector in (GC_COLLECTOR, PLATFORM_COLLECTOR, PROCESS_COLLECTOR):
        made.register(collector)
    return made


def serve(address: str, metrics: CollectorRegistry) -> Callable[[], None]:
    """Serve `metrics` at http://`address`/metrics; return what stops it. "" serves nothing.

    Raises `OSError` when the address cannot be bound.
    """
    if not address:
        return lambda: None
    host, _, port = address.rpartition(":")
    server, thread = start_http_server(int(port), addr=host or "127.0.0.1", registry=metrics)

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop
