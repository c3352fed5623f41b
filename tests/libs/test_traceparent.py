"""libs.telemetry.traceparent: what is kept in a row continues the trace."""

from __future__ import annotations

from opentelemetry.sdk.trace import TracerProvider

from libs.telemetry import traceparent


def test_a_span_started_later_belongs_to_the_trace_of_the_row() -> None:
    tracer = TracerProvider().get_tracer("test")
    with tracer.start_as_current_span("function") as root:
        kept = traceparent.current()
    later = tracer.start_span("reclaim", context=traceparent.context_of(kept))
    assert later.get_span_context().trace_id == root.get_span_context().trace_id
    assert later.parent is not None  # type: ignore[attr-defined]
    assert later.parent.span_id == root.get_span_context().span_id  # type: ignore[attr-defined]
    assert traceparent.trace_id_of(kept) == f"{root.get_span_context().trace_id:032x}"


def test_a_malformed_one_begins_a_trace_of_its_own() -> None:
    tracer = TracerProvider().get_tracer("test")
    span = tracer.start_span("x", context=traceparent.context_of("nonsense"))
    assert span.parent is None  # type: ignore[attr-defined]
    assert traceparent.trace_id_of("nonsense") == ""
