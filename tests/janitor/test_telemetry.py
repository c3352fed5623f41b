"""The end of a lease in the function's own trace, and in Prometheus' figures."""

from __future__ import annotations

import asyncio
import socket
import urllib.request
from typing import Any

from mayfly.v1 import janitor_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from libs.rpc.server import Server
from services.janitor.spans import Ended, Interval, Spans
from tests.janitor.conftest import Eventually, Run
from tests.janitor.owner import TestOwner

TRACE = "0af7651916cd43dd8448eb211c80319c"
ROOT = "b7ad6b7169203331"
SECOND = 1_000_000_000


def test_expire_holds_reclaim_and_verify() -> None:
    memory = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    spans = Spans(provider.get_tracer("test"))
    receipt = janitor_pb2.Receipt(resource="functions/a", end_reason="ttl", verified=False)
    receipt.expire_time.FromSeconds(100)
    reclaim, verify = Interval(101 * SECOND, 102 * SECOND), Interval(102 * SECOND, 104 * SECOND)
    spans.add(Ended(f"00-{TRACE}-{ROOT}-01", receipt, reclaim, verify))
    spans.add(Ended("", receipt, reclaim, verify))  # a build has no trace
    spans.flush()
    found = {span.name: span for span in memory.get_finished_spans()}
    assert len(memory.get_finished_spans()) == 3
    expire = found["expire"]
    assert f"{expire.context.trace_id:032x}" == TRACE
    assert expire.parent is not None
    assert f"{expire.parent.span_id:016x}" == ROOT
    assert (expire.start_time, expire.end_time) == (100 * SECOND, 104 * SECOND)
    for name, interval in (("reclaim", reclaim), ("verify", verify)):
        span = found[name]
        assert span.parent is not None
        assert span.parent.span_id == expire.context.span_id
        assert (span.start_time, span.end_time) == (interval.start, interval.end)
    assert not found["verify"].status.is_ok
    assert found["reclaim"].status.is_ok or found["reclaim"].status.is_unset


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps the names of spans by trace."""

    def __init__(self) -> None:
        self.names: dict[str, set[str]] = {}

    async def Export(self, request: Any, context: Any) -> Any:
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.names.setdefault(span.trace_id.hex(), set()).add(span.name)
        return trace_service_pb2.ExportTraceServiceResponse()


async def test_spans_reach_a_collector_and_figures_prometheus(
    run_janitor: Run, deployer: TestOwner, eventually: Eventually
) -> None:
    collector = Collector()
    serving = Server("127.0.0.1:0", [])
    serving.add(trace_service_pb2_grpc.add_TraceServiceServicer_to_server, collector)
    endpoint = await serving.start()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        metrics = f"127.0.0.1:{probe.getsockname()[1]}"
    async with run_janitor(otlp_endpoint=endpoint, janitor_metrics_listen=metrics) as stub:
        deployer.put("functions/late", "u2", 600)
        deployer.put("functions/a", "u1", 0.05, traceparent=f"00-{TRACE}-{ROOT}-01")

        async def traced() -> bool:
            return {"expire", "reclaim", "verify"} <= collector.names.get(TRACE, set())

        await eventually(traced)
        status = await stub.GetStatus(janitor_pb2.GetStatusRequest())
        assert status.deadlines == 1
        text = await asyncio.to_thread(_scrape, metrics)
    await serving.stop(0)
    assert "mayfly_janitor_deadlines 1.0" in text
    assert "mayfly_janitor_overdue 0.0" in text
    assert 'mayfly_janitor_outcomes_total{owner="deployer",result="reclaimed"} 1.0' in text
    assert "mayfly_janitor_lag_seconds_count 1.0" in text


def _scrape(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
        return answer.read().decode()
