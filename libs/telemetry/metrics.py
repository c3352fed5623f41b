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

from libs.rpc.addresses import host_and_port
from libs.rpc.process import StartError


def registry() -> CollectorRegistry:
    """Return a registry that holds the process's own figures; a service adds its own."""
    made = CollectorRegistry()
    for collector in (GC_COLLECTOR, PLATFORM_COLLECTOR, PROCESS_COLLECTOR):
        made.register(collector)
    return made


def serve(address: str, metrics: CollectorRegistry, *, setting: str) -> Callable[[], None]:
    """Serve `metrics` at http://`address`/metrics; return what stops it. "" serves nothing.

    Raises `StartError` that names `setting` when nothing can listen there.
    """
    if not address:
        return lambda: None
    try:
        host, port = host_and_port(address)
        server, thread = start_http_server(port, addr=host, registry=metrics)
    except ValueError as error:
        raise StartError(f"{setting}: {error}") from error
    except OSError as error:
        raise StartError(f"{setting}: cannot listen on {address}: {error.strerror}") from error

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop
