"""W3C traceparent (https://www.w3.org/TR/trace-context/), as it is kept in rows and messages."""

from __future__ import annotations

from opentelemetry.context import Context
from opentelemetry.trace import Span, get_current_span
from opentelemetry.trace.propagation import set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_PROPAGATOR = TraceContextTextMapPropagator()


def of_span(span: Span) -> str:
    """Return the traceparent of `span`; empty when it is not valid."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, set_span_in_context(span))
    return carrier.get("traceparent", "")


def current() -> str:
    """Return the traceparent of the current span; empty when there is none."""
    return of_span(get_current_span())


def context_of(traceparent: str) -> Context:
    """Return a context whose current span is the remote one of `traceparent`.

    An empty or malformed one gives an empty context: a span started in it is a root.
    """
    return _PROPAGATOR.extract({"traceparent": traceparent}, Context())


def trace_id_of(traceparent: str) -> str:
    """Return the 32 hex digits of its trace id; empty when malformed."""
    context = get_current_span(context_of(traceparent)).get_span_context()
    return f"{context.trace_id:032x}" if context.is_valid else ""
