"""Spans of a build, in the trace of whoever asked for it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent import futures
from typing import Any

import grpc
from mayfly.v1.build_pb2 import CreateBuildRequest
from mayfly.v1.build_pb2_grpc import BuildServiceStub
from mayfly.v1.source_pb2 import Source
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from services.builder.config import Settings
from tests.builder.conftest import handler_with, running, until
from tests.builder.index import Index

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


class Sink(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps spans by name."""

    def __init__(self) -> None:
        self.spans: dict[str, Any] = {}

    def Export(self, request: Any, context: Any) -> Any:
        """Take spans."""
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.spans[span.name] = span
        return trace_service_pb2.ExportTraceServiceResponse()


async def test_a_builds_steps_are_spans_of_the_callers_trace(
    index: Index, settings: Callable[..., Settings]
) -> None:
    index.add("alpha")
    sink = Sink()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(sink, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        async with running(settings(otlp_endpoint=f"127.0.0.1:{port}")) as replica:
            request = CreateBuildRequest(source=Source(handler=handler_with("alpha")))
            request.wait.seconds = 30
            async with grpc.aio.insecure_channel(replica.address) as channel:
                create = BuildServiceStub(channel).CreateBuild
                await create(request, metadata=(("traceparent", TRACEPARENT),))
            wanted = {"builder", "build", "check", "resolve", "install"}
            await until(lambda: wanted <= {name for name, s in sink.spans.items() if s})
            assert {sink.spans[name].trace_id.hex() for name in wanted} == {TRACE}
            assert sink.spans["install"].parent_span_id == sink.spans["build"].span_id
    finally:
        server.stop(None).wait()
