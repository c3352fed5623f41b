"""A collector of the operator's own gets the whole trace: every service's spans, and Envoy's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest_asyncio
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from tests.conformance.standalone import Standalone

HANDLER = "def handler(event, ctx):\n    return 1\n"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps (service, name) of the spans of each trace."""

    def __init__(self) -> None:
        self.spans: dict[str, set[tuple[str, str]]] = {}
        self.more = asyncio.Condition()

    async def Export(self, request: Any, context: Any) -> Any:
        for resource in request.resource_spans:
            attributes = {a.key: a.value.string_value for a in resource.resource.attributes}
            for scope in resource.scope_spans:
                for span in scope.spans:
                    of_trace = self.spans.setdefault(span.trace_id.hex(), set())
                    of_trace.add((attributes.get("service.name", ""), span.name))
        async with self.more:
            self.more.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest_asyncio.fixture
async def collector() -> AsyncIterator[tuple[Collector, str]]:
    """A collector and its address."""
    server = grpc.aio.server()
    made = Collector()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(made, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield made, f"127.0.0.1:{port}"
    await server.stop(0)


async def test_the_collector_gets_one_whole_trace(
    collector: tuple[Collector, str], reachable_tmp: Path
) -> None:
    made, address = collector
    platform = Standalone(reachable_tmp / "otlp", env={"MAYFLY_OTLP_ENDPOINT": address})
    await asyncio.to_thread(platform.start)
    try:
        async with httpx.AsyncClient(base_url=platform.url, timeout=30) as http:
            wish = {"handler": HANDLER, "ttl": "2s"}
            created = await http.post("/v1/functions?function_id=f", json=wish)
            assert (await http.get("/f/f")).status_code == 200
        trace = created.json()["traceId"]
        wanted = {
            ("gateway", "first request"),
            ("deployer", "function"),
            ("builder", "build"),
            ("deployer", "reclaim"),
            ("janitor", "expire"),
        }

        def complete() -> bool:
            spans = made.spans.get(trace, set())
            # Envoy names its span after the request's verb and, where it knows it, its path.
            return wanted <= spans and any(name.startswith("POST") for _, name in spans)

        async with asyncio.timeout(30), made.more:
            await made.more.wait_for(complete)
    finally:
        await asyncio.to_thread(platform.stop)
