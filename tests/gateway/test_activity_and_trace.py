"""What the deployer learns from the gateway: use, inventories, acknowledgements, spans."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest_asyncio
from mayfly.v1.function_pb2 import State
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from libs.telemetry.traceparent import trace_id_of
from tests.gateway.conftest import Running, running
from tests.gateway.deployer import Deployer, route
from tests.gateway.test_functions import warm
from tests.gateway.upstream import Request, echo, serve

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def test_requests_are_reported_wherever_they_pass(gateway: Running) -> None:
    async with serve(gateway.directory / "f.sock") as upstream:
        await gateway.deployer.put(
            route("used", upstream.endpoint), route("quiet", upstream.endpoint)
        )
        await gateway.http.get("/f/used/")  # held
        await gateway.deployer.until(lambda: gateway.deployer.requests("used") == 1, 1)
        await warm(gateway, "used")
        await asyncio.sleep(2.1)  # Envoy counts a cluster from its next report on
        seen = gateway.deployer.requests("used")
        for _ in range(7):
            await gateway.http.get("/f/used/")
        await gateway.deployer.until(lambda: gateway.deployer.requests("used") == seen + 7, 4)
        last = [a for a in gateway.deployer.activity if a.function_id == "used"][-1]
        assert last.uid == "uid-used"
        assert abs(last.last_use_time.ToNanoseconds() / 1e9 - time.time()) < 4
        # To be known is no use.
        assert "quiet" not in {a.function_id for a in gateway.deployer.activity}


async def test_open_streams_count_until_they_close(gateway: Running) -> None:
    release = asyncio.Event()

    async def hang(request: Request) -> None:
        if request.target == "/":
            return await echo(request)
        request.writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        await request.chunk(b"first\n")
        await release.wait()
        await request.chunk(b"")
        return None

    async with serve(gateway.directory / "f.sock", hang) as upstream:
        deployer = gateway.deployer
        await deployer.put(route("open", upstream.endpoint), route("held", upstream.endpoint))
        await warm(gateway, "open")
        async with (
            gateway.http.stream("GET", "/f/open/s") as direct,
            gateway.http.stream("GET", "/f/held/s") as held,
        ):
            assert direct.status_code == held.status_code == 200
            await deployer.until(lambda: deployer.in_flight("open") == 1)
            await deployer.until(lambda: deployer.in_flight("held") == 1)
            release.set()
            await direct.aread()
            await held.aread()
        await deployer.until(lambda: deployer.in_flight("open") == 0)
        await deployer.until(lambda: deployer.in_flight("held") == 0)


async def test_an_inventory_is_what_answers(gateway: Running) -> None:
    async with serve(gateway.directory / "f.sock") as upstream:
        await gateway.deployer.put(route("a", upstream.endpoint), route("b", upstream.endpoint))
        await warm(gateway, "a")
        assert await gateway.deployer.ask_inventory(1) == ["a", "b"]
        await gateway.deployer.remove("a")
        assert await gateway.deployer.ask_inventory(2) == ["b"]


async def test_snapshots_replace_and_come_in_chunks(directory: Any, deployer: Deployer) -> None:
    async with serve(directory / "f.sock") as upstream:
        deployer.snapshot_chunk = 7
        for number in range(30):
            deployer.routes[f"fn-{number}"] = route(f"fn-{number}", upstream.endpoint)
        async with running(directory, deployer) as gateway:
            await deployer.connected()
            names = sorted(deployer.routes)
            assert await deployer.ask_inventory(1) == names
            answers = await asyncio.gather(*(gateway.http.get(f"/f/{name}/") for name in names))
            assert {answer.status_code for answer in answers} == {200}
            await deployer.stop()
            for name in names[5:]:
                del deployer.routes[name]
                deployer.ended.add(name)
            await deployer.start()
            await deployer.connected()
            assert await deployer.ask_inventory(2) == names[:5]


class _Sink(trace_service_pb2_grpc.TraceServiceServicer):
    """An OTLP collector."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Span]] = []
        self.changed = asyncio.Condition()

    async def Export(self, request: Any, context: Any) -> Any:
        for resource in request.resource_spans:
            names = [
                a.value.string_value
                for a in resource.resource.attributes
                if a.key == "service.name"
            ]
            for scope in resource.scope_spans:
                self.spans.extend((names[0], span) for span in scope.spans)
        async with self.changed:
            self.changed.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    async def find(self, name: str) -> tuple[str, Span]:
        def found() -> Any:
            return next((s for s in self.spans if s[1].name == name), None)

        async with asyncio.timeout(10), self.changed:
            return await self.changed.wait_for(found)


@pytest_asyncio.fixture
async def traced(directory: Any) -> AsyncIterator[tuple[Running, _Sink]]:
    """A gateway whose deployer keeps spans."""
    sink = _Sink()
    deployer = Deployer(f"unix:{directory}/d.sock")
    await deployer.start(
        lambda server: trace_service_pb2_grpc.add_TraceServiceServicer_to_server(sink, server)
    )
    async with running(directory, deployer) as gateway:
        await deployer.connected()
        yield gateway, sink
    await deployer.stop()


async def test_the_first_request_is_a_span_of_the_functions_trace(
    traced: tuple[Running, _Sink],
) -> None:
    gateway, sink = traced
    async with serve(gateway.directory / "f.sock") as upstream:
        made = route("new", upstream.endpoint, traceparent=TRACEPARENT)
        await gateway.deployer.put(made)
        for number in range(3):
            await gateway.http.get(f"/f/new/{number}?secret=1")
        service, span = await sink.find("first request")
        assert service == "gateway"
        assert span.trace_id.hex() == trace_id_of(TRACEPARENT)
        assert span.parent_span_id.hex() == TRACEPARENT.split("-")[2]
        attributes = {a.key: a.value for a in span.attributes}
        assert attributes["http.response.status_code"].int_value == 200
        assert attributes["url.path"].string_value == "/0"
        assert attributes["mayfly.function"].string_value == "new"
        # A change of the route is no new life.
        made.state = State.STATE_IDLE
        await gateway.deployer.put(made)
        await gateway.http.get("/f/new/")
        await asyncio.sleep(0.5)  # two exports
        assert [s.name for _, s in sink.spans].count("first request") == 1


async def test_a_call_of_v1_is_a_span_that_reaches_the_service(
    traced: tuple[Running, _Sink],
) -> None:
    gateway, sink = traced
    headers = {"traceparent": TRACEPARENT}
    path = "/v1/functions?function_id=a"
    await gateway.http.post(path, json={"runtime": "python"}, headers=headers)
    service, span = await sink.find("POST /v1/functions")
    assert service == "gateway"
    assert span.trace_id.hex() == trace_id_of(TRACEPARENT)
    passed_on = gateway.deployer.metadata["traceparent"].split("-")
    assert passed_on[1] == trace_id_of(TRACEPARENT)
    assert passed_on[2] == span.span_id.hex()
