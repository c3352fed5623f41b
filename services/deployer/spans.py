"""Spans that belong to a function's trace, whoever runs them and whenever."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace import Tracer as SdkTracer
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Span, SpanContext, TraceFlags, Tracer

from libs.telemetry import traceparent
from services.deployer.rows import FunctionRow

ROOT = "function"
FUNCTION_ID = "mayfly.function"
FUNCTION_UID = "mayfly.uid"


@contextmanager
def span_of(
    tracer: Tracer,
    parent: str,
    name: str,
    function_id: str,
    uid: str,
    begin_nanoseconds: int | None = None,
) -> Generator[Span]:
    """Run a span of the function whose row has the traceparent `parent`."""
    with tracer.start_as_current_span(
        name,
        context=traceparent.context_of(parent),
        attributes={FUNCTION_ID: function_id, FUNCTION_UID: uid},
        start_time=begin_nanoseconds,
    ) as span:
        yield span


@dataclass(frozen=True)
class Root:
    """The root span of a function: what its other spans hang below."""

    traceparent: str
    parent_span_id: str
    """16 hex digits of the caller's span; empty when there is none."""


def begin_root(tracer: Tracer) -> Root:
    """Return a new root span below the current one.

    The span itself lasts as long as its function, which outlives any process: it is recorded by
    `end_root` when the function has been reclaimed.
    """
    parent = trace.get_current_span().get_span_context()
    own = traceparent.of_span(tracer.start_span(ROOT))
    return Root(own, f"{parent.span_id:016x}" if parent.is_valid else "")


def end_root(tracer: Tracer, row: FunctionRow, end: datetime, end_reason: str) -> None:
    """Record the root span of a function that has been reclaimed."""
    context = trace.get_current_span(traceparent.context_of(row.traceparent)).get_span_context()
    if not isinstance(tracer, SdkTracer) or not context.is_valid:
        return
    flags = TraceFlags(TraceFlags.SAMPLED)
    parent = None
    if row.parent_span_id:
        parent = SpanContext(context.trace_id, int(row.parent_span_id, 16), True, flags)
    attributes = {FUNCTION_ID: row.id, FUNCTION_UID: row.uid, "mayfly.end": end_reason}
    tracer.span_processor.on_end(
        ReadableSpan(
            name=ROOT,
            context=SpanContext(context.trace_id, context.span_id, False, flags),
            parent=parent,
            resource=tracer.resource,
            attributes=attributes,
            start_time=_nanoseconds(row.create_time),
            end_time=_nanoseconds(end),
            instrumentation_scope=InstrumentationScope("mayfly"),
        )
    )


def _nanoseconds(time: datetime) -> int:
    return int(time.timestamp() * 1_000_000) * 1000
