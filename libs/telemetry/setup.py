"""structlog JSON with trace ids, and OpenTelemetry export over OTLP."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import structlog
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Tracer

EXPORT_EVERY_MS = 200
SHUTDOWN_SECONDS = 0.5


@dataclass(frozen=True)
class Telemetry:
    """A service's tracer, and the provider behind it."""

    service: str
    tracer: Tracer
    provider: TracerProvider
    exporters: tuple[OTLPSpanExporter, ...]

    def shutdown(self) -> None:
        """Send what is left. Blocks: call it in a thread from an event loop.

        A collector that does not answer is given `SHUTDOWN_SECONDS`, not the exporter's retries.
        """
        give_up = [cast("Callable[[], None]", exporter.shutdown) for exporter in self.exporters]
        giving_up = [threading.Timer(SHUTDOWN_SECONDS, end) for end in give_up]
        for timer in giving_up:
            timer.start()
        self.provider.shutdown()
        for timer in giving_up:
            timer.cancel()
            timer.join()


def setup(service: str, otlp_endpoints: Sequence[str], *, log_level: str = "INFO") -> Telemetry:
    """Set up logging, and traces of `service` to every endpoint ("unix:/path", "host:port").

    In a process of several services each has its own provider; the first one becomes the
    process's default, which the gRPC instrumentation uses.
    """
    _configure_logging(log_level)
    provider = TracerProvider(
        resource=Resource.create({SERVICE_NAME: service}), shutdown_on_exit=False
    )
    exporters = tuple(
        OTLPSpanExporter(endpoint=endpoint, insecure=True, timeout=5) for endpoint in otlp_endpoints
    )
    for exporter in exporters:
        provider.add_span_processor(
            BatchSpanProcessor(exporter, schedule_delay_millis=EXPORT_EVERY_MS)
        )
    if not isinstance(trace.get_tracer_provider(), TracerProvider):
        trace.set_tracer_provider(provider)
    return Telemetry(service, provider.get_tracer("mayfly"), provider, exporters)


def _configure_logging(level: str) -> None:
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_trace_ids,
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(),
    ]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    # An exporter whose collector is away (at every stop the embedded sink ends before its last
    # clients) says so on each try; what is lost are spans, and no operator can act upon it.
    logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)


def _add_trace_ids(_: Any, __: str, event: dict[str, Any]) -> dict[str, Any]:
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = f"{context.trace_id:032x}"
        event["span_id"] = f"{context.span_id:016x}"
    return event
