"""gRPC functions: HTTP/2 from end to end, held ones too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from mayfly.v1 import function_pb2, function_pb2_grpc
from mayfly.v1.function_pb2 import Protocol, State

from services.gateway import http2
from services.gateway.errors import NOT_FOUND
from tests.gateway.conftest import Running
from tests.gateway.deployer import route

HTTP2 = Protocol.PROTOCOL_HTTP2


class _Echo(function_pb2_grpc.FunctionServiceServicer):
    """A gRPC service that a function might be."""

    async def GetFunction(self, request: Any, context: Any) -> Any:
        if request.name == "slow":
            await asyncio.sleep(30)
        if request.name == "fail":
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "as asked")
        return function_pb2.GetFunctionResponse(function=function_pb2.Function(name=request.name))

    async def WatchFunction(self, request: Any, context: Any) -> AsyncIterator[Any]:
        for number in range(request.after):
            yield function_pb2.WatchFunctionResponse(
                event=function_pb2.FunctionEvent(sequence=number)
            )


@asynccontextmanager
async def grpc_function(path: Path) -> AsyncIterator[str]:
    server = grpc.aio.server()
    function_pb2_grpc.add_FunctionServiceServicer_to_server(_Echo(), server)
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    yield f"unix:{path}"
    await server.stop(0)


def stub(gateway: Running, function_id: str) -> tuple[grpc.aio.Channel, Any]:
    """A client that reaches the function by its host."""
    channel = grpc.aio.insecure_channel(
        f"127.0.0.1:{gateway.port}",
        options=[("grpc.default_authority", f"{function_id}.localhost:{gateway.port}")],
    )
    return channel, function_pb2_grpc.FunctionServiceStub(channel)


def get(name: str) -> function_pb2.GetFunctionRequest:
    return function_pb2.GetFunctionRequest(name=name)


async def test_grpc_from_the_first_call_on(gateway: Running) -> None:
    async with grpc_function(gateway.directory / "g.sock") as endpoint:
        for number in range(20):
            name = f"g{number}"
            await gateway.deployer.put(route(name, endpoint, protocol=HTTP2), wait=False)
            channel, client = stub(gateway, name)
            async with channel:
                for call in range(4):
                    got = await client.GetFunction(get(f"n{call}" * 200))
                    assert got.function.name == f"n{call}" * 200
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await client.GetFunction(get("fail"))
                assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
                assert caught.value.details() == "as asked"
                request = function_pb2.WatchFunctionRequest(after=50)
                assert len([m async for m in client.WatchFunction(request)]) == 50


async def test_grpc_calls_are_held_while_a_function_is_built(gateway: Running) -> None:
    building = route("g", "", protocol=HTTP2, state=State.STATE_BUILDING)
    await gateway.deployer.put(building)
    channel, client = stub(gateway, "g")
    async with channel:
        waiting = [asyncio.ensure_future(client.GetFunction(get(f"n{n}"))) for n in range(5)]
        await asyncio.wait(waiting, timeout=0.3)
        assert not any(call.done() for call in waiting)
        async with grpc_function(gateway.directory / "g.sock") as endpoint:
            await gateway.deployer.put(route("g", endpoint, protocol=HTTP2))
            names = [(await call).function.name for call in waiting]
            assert names == [f"n{n}" for n in range(5)]


@pytest.mark.parametrize("held", [True, False])
async def test_the_host_of_an_endpoint_replaces_the_callers(gateway: Running, held: bool) -> None:
    seen: list[tuple[str | None, list[str]]] = []

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received = bytearray()
        writer.write(http2.frame(http2.SETTINGS, 0, 0))
        while (found := http2.opening(received)) is None and (data := await reader.read(65536)):
            received += data
        if found is not None:
            head = found[0].head
            seen.append((head.get("host"), [v for n, v in head.lines if n == "x-forwarded-host"]))
            writer.write(http2.refusal(NOT_FOUND, found[0].stream, settled=True))
            await writer.drain()
            await reader.read()
        writer.close()

    path = gateway.directory / "h.sock"
    server = await asyncio.start_unix_server(connection, path)
    await gateway.deployer.put(route("g", f"unix:{path}", protocol=HTTP2, host="fn-1.svc"))
    channel, client = stub(gateway, "g")
    async with channel:
        for _ in range(1 if held else 2):
            with pytest.raises(grpc.aio.AioRpcError):
                await client.GetFunction(get("x"))
            await gateway.deployer.put(*gateway.deployer.routes.values())
    server.close()
    assert seen[-1] == ("fn-1.svc", [f"g.localhost:{gateway.port}"])
    assert len(seen) == (1 if held else 2)


async def test_grpc_refusals_are_statuses(gateway: Running) -> None:
    for function_id, expected in (
        ("unknown", grpc.StatusCode.NOT_FOUND),
        ("failed", grpc.StatusCode.UNAVAILABLE),
    ):
        failed = route("failed", "", protocol=HTTP2, state=State.STATE_FAILED)
        await gateway.deployer.put(failed)
        channel, client = stub(gateway, function_id)
        async with channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await client.GetFunction(get("x"))
            assert caught.value.code() is expected


@pytest.mark.parametrize("held", [True, False])
async def test_a_grpc_call_without_an_answer_ends_in_time(gateway: Running, held: bool) -> None:
    async with grpc_function(gateway.directory / "g.sock") as endpoint:
        await gateway.deployer.put(route("g", endpoint, protocol=HTTP2, timeout=0.4))
        channel, client = stub(gateway, "g")
        async with channel:
            if not held:
                await client.GetFunction(get("warm"))
                await gateway.deployer.put(*gateway.deployer.routes.values())
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await asyncio.wait_for(client.GetFunction(get("slow")), 3)
            assert caught.value.code() in (
                grpc.StatusCode.UNAVAILABLE,
                grpc.StatusCode.DEADLINE_EXCEEDED,
            )
