"""The embedded OTLP sink: spans of functions' traces, kept as long as the function's tombstone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import grpc
import structlog
from mayfly.v1.function_pb2 import Span
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    TraceServiceStub,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Status
from opentelemetry.proto.trace.v1.trace_pb2 import Span as OtlpSpan
from opentelemetry.trace import get_current_span

from libs.store import Store, StoreUnavailable
from libs.telemetry import traceparent
from services.deployer.rows import FunctionRow
from services.deployer.spans import FUNCTION_ID, FUNCTION_UID, ROOT
from services.deployer.view import timestamp

log = structlog.get_logger()

MOST_SPANS = 1000
"""Spans that are kept of one trace."""
_SERVICE = "service.name"
_FORWARD_SECONDS = 1.0


class Traces:
    """Spans by trace."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def add(self, spans: Sequence[dict[str, Any]]) -> None:
        """Keep those spans whose traces are functions'."""
        if not spans:
            return
        columns = {
            "trace_ids": "trace_id", "span_ids": "span_id", "parent_span_ids": "parent_span_id",
            "names": "name", "services": "service", "start_times": "start_time",
            "end_times": "end_time", "attributes": "attributes", "errors": "error",
        }  # fmt: skip
        arguments = {name: [span[key] for span in spans] for name, key in columns.items()}
        async with self._store.connection() as connection:
            await self._store.queries.add_spans(connection, most=MOST_SPANS, **arguments)

    async def spans_of(self, row: FunctionRow) -> list[Span]:
        """Return the spans of a function's trace, by start."""
        async with self._store.connection() as connection:
            records = self._store.queries.spans_of(connection, trace_id=row.trace_id)
            spans = [_message(record) async for record in records]
        root = get_current_span(traceparent.context_of(row.traceparent)).get_span_context()
        root_id = f"{root.span_id:016x}"
        if all(span.span_id != root_id for span in spans):
            spans.append(_open_root(row, root_id, spans))
        return sorted(spans, key=lambda span: (span.start_time.ToNanoseconds(), span.span_id))


class TraceSink(TraceServiceServicer):
    """`opentelemetry.proto.collector.trace.v1.TraceService`."""

    def __init__(self, traces: Traces, collector: TraceServiceStub | None = None) -> None:
        self._traces = traces
        # Envoy exports to one place alone, this one; an operator's own collector gets its spans
        # from here.
        self._collector = collector

    async def Export(
        self, request: ExportTraceServiceRequest, context: Any
    ) -> ExportTraceServiceResponse:
        """Keep what belongs to functions; spans are dropped while the database is away."""
        try:
            await self._traces.add(list(_rows(request)))
        except StoreUnavailable as error:
            log.warning("spans_dropped", error=str(error))
        if self._collector is not None:
            await _forward(self._collector, [r for r in request.resource_spans if _is_envoys(r)])
        return ExportTraceServiceResponse()


async def _forward(collector: TraceServiceStub, spans: Sequence[ResourceSpans]) -> None:
    if not spans:
        return
    request = ExportTraceServiceRequest(resource_spans=spans)
    try:
        await collector.Export(request, timeout=_FORWARD_SECONDS)
    except grpc.aio.AioRpcError as error:
        log.info("spans_not_forwarded", code=error.code().name)


def _is_envoys(spans: ResourceSpans) -> bool:
    return any(
        attribute.key == "telemetry.sdk.name" and attribute.value.string_value == "envoy"
        for attribute in spans.resource.attributes
    )


def _rows(request: ExportTraceServiceRequest) -> Iterable[dict[str, Any]]:
    for resource in request.resource_spans:
        service = ""
        for attribute in resource.resource.attributes:
            if attribute.key == _SERVICE:
                service = _text(attribute.value)
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield _row(span, service)


def _row(span: OtlpSpan, service: str) -> dict[str, Any]:
    attributes = {a.key: _text(a.value) for a in span.attributes}
    error = ""
    if span.status.code == Status.STATUS_CODE_ERROR:
        error = span.status.message or "error"
    return {
        "trace_id": span.trace_id.hex(),
        "span_id": span.span_id.hex(),
        "parent_span_id": span.parent_span_id.hex(),
        "name": span.name,
        "service": service,
        "start_time": _time(span.start_time_unix_nano),
        "end_time": _time(span.end_time_unix_nano),
        "attributes": json.dumps(attributes).replace("\\u0000", ""),
        "error": error,
    }


def _message(record: Any) -> Span:
    return Span(
        span_id=record["span_id"],
        parent_span_id=record["parent_span_id"],
        name=record["name"],
        service=record["service"],
        start_time=timestamp(record["start_time"]),
        end_time=timestamp(record["end_time"]),
        attributes=json.loads(record["attributes"]),
        error=record["error"],
    )


def _open_root(row: FunctionRow, span_id: str, spans: Sequence[Span]) -> Span:
    """The root of a function that is not reclaimed: its end is that of what has happened so far."""
    ends = [span.end_time.ToDatetime(tzinfo=UTC) for span in spans]
    return Span(
        span_id=span_id,
        parent_span_id=row.parent_span_id,
        name=ROOT,
        service="deployer",
        start_time=timestamp(row.create_time),
        end_time=timestamp(row.reclaim_time or max([*ends, row.create_time])),
        attributes={FUNCTION_ID: row.id, FUNCTION_UID: row.uid},
    )


def _text(value: AnyValue) -> str:
    kind = value.WhichOneof("value")
    if kind is None:
        return ""
    inner = getattr(value, kind)
    if kind == "array_value":
        return ", ".join(_text(item) for item in inner.values)
    return str(inner).lower() if kind == "bool_value" else str(inner)


def _time(nanoseconds: int) -> datetime:
    return datetime.fromtimestamp(nanoseconds / 1e9, UTC)
