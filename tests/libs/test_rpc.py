"""libs.rpc: what a method raises is what a caller reads."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from mayfly.v1 import function_pb2, function_pb2_grpc
from mayfly.v1.error_pb2 import ErrorReason

from libs.rpc.channel import connect
from libs.rpc.errors import MayflyError, from_rpc_error
from libs.rpc.server import AddressInUse, Server
from libs.store import StoreUnavailable

SERVICE = "mayfly.v1.FunctionService"


class Raising(function_pb2_grpc.FunctionServiceServicer):
    """Raises what the request's name asks for."""

    async def GetFunction(
        self, request: function_pb2.GetFunctionRequest, context: grpc.aio.ServicerContext
    ) -> function_pb2.GetFunctionResponse:
        if request.name == "mine":
            raise MayflyError(
                ErrorReason.ERROR_REASON_INVALID_TTL, "ttl is 0", fix="set more", field="ttl"
            )
        if request.name == "store":
            raise StoreUnavailable("gone")
        raise ZeroDivisionError

    async def WatchFunction(
        self, request: function_pb2.WatchFunctionRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[function_pb2.WatchFunctionResponse]:
        yield function_pb2.WatchFunctionResponse()
        raise MayflyError(ErrorReason.ERROR_REASON_NOT_FOUND, "no such function")


@pytest_asyncio.fixture
async def channel(tmp_path: Path) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a server of `Raising`."""
    server = Server(f"unix:{tmp_path}/s", [SERVICE])
    server.add(function_pb2_grpc.add_FunctionServiceServicer_to_server, Raising())
    address = await server.start()
    await server.health.set(SERVICE, True)
    async with connect(address) as made:
        yield made
    await server.stop(0)


async def failure_of(channel: grpc.aio.Channel, name: str) -> MayflyError:
    stub = function_pb2_grpc.FunctionServiceStub(channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetFunction(function_pb2.GetFunctionRequest(name=name))
    return from_rpc_error(caught.value)


async def test_an_error_keeps_its_reason_field_and_fix(channel: grpc.aio.Channel) -> None:
    error = await failure_of(channel, "mine")
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert (error.reason_name, error.field, error.fix) == ("INVALID_TTL", "ttl", "set more")


async def test_a_lost_database_is_unavailable(channel: grpc.aio.Channel) -> None:
    assert (await failure_of(channel, "store")).code is grpc.StatusCode.UNAVAILABLE


async def test_a_fault_is_internal_and_tells_nothing(channel: grpc.aio.Channel) -> None:
    error = await failure_of(channel, "else")
    assert error.code is grpc.StatusCode.INTERNAL
    assert "ZeroDivision" not in error.message


async def test_a_stream_ends_with_its_error(channel: grpc.aio.Channel) -> None:
    stub = function_pb2_grpc.FunctionServiceStub(channel)
    stream = stub.WatchFunction(function_pb2.WatchFunctionRequest())
    await anext(aiter(stream))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await anext(aiter(stream))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_health_is_what_was_said(channel: grpc.aio.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=""))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_taken_port_is_said() -> None:
    first = Server("127.0.0.1:0", [SERVICE])
    address = await first.start()
    with pytest.raises(AddressInUse, match=address):
        await Server(address, [SERVICE]).start()
    await first.stop(0)
