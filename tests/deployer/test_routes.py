"""RouteService: snapshots, activation, acknowledgements."""

from __future__ import annotations

import asyncio
import time

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from mayfly.v1 import route_pb2
from mayfly.v1.error_pb2 import ErrorReason
from mayfly.v1.function_pb2 import State

from libs.rpc.errors import from_rpc_error

from .conftest import Gateway, Running
from .tiny_builder import TinyBuilder


async def activate(deployer: Running, function_id: str, seconds: int = 5) -> route_pb2.Route:
    request = route_pb2.ActivateFunctionRequest(
        function_id=function_id, wait=Duration(seconds=seconds)
    )
    return (await deployer.routes.ActivateFunction(request)).route


async def test_snapshot_holds_all_and_versions_grow(deployer: Running) -> None:
    made = [await deployer.create(f"f{n}") for n in range(5)]
    for function in made:
        await deployer.settle(function.name.removeprefix("functions/"))
    gateway = Gateway(deployer)
    await gateway.until(lambda: gateway.complete)
    assert set(gateway.routes) == {f"f{n}" for n in range(5)}
    route = gateway.routes["f0"]
    assert route.one_request_per_connection
    assert route.timeout.seconds == 60
    assert route.traceparent.split("-")[1] == made[0].trace_id
    await deployer.delete("f0")
    assert "f0" not in gateway.routes
    versions = [message.version for message in gateway.messages]
    assert versions == sorted(set(versions))
    await gateway.leave()
    again = Gateway(deployer)
    await again.until(lambda: again.complete)
    assert again.messages[0].version > versions[-1]
    await again.leave()


async def test_idling_and_waking_change_no_route(deployer: Running) -> None:
    function = await deployer.ready("hello")
    gateway = Gateway(deployer)
    await gateway.until(lambda: gateway.complete)
    before = len(gateway.messages)
    deployer.driver.idle(function.uid)
    deployer.driver.active(function.uid)
    await deployer.ready("other")
    await gateway.until(lambda: "other" in gateway.routes)
    touched = {r.function_id for message in gateway.messages[before:] for r in message.upserts}
    assert touched == {"other"}
    await gateway.leave()


async def test_activation_waits_for_the_address(deployer: Running) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await activate(deployer, "nope")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    creating = asyncio.create_task(deployer.create("hello"))
    await creating
    route = await activate(deployer, "hello")
    assert route.endpoint.startswith("unix:")
    await deployer.delete("hello")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await activate(deployer, "hello")
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert from_rpc_error(caught.value).reason == ErrorReason.ERROR_REASON_FUNCTION_ENDED
    await deployer.create("broken", handler="BUILD FAILS")
    await deployer.settle("broken")
    assert (await activate(deployer, "broken")).failure.reason == "SOURCE_SYNTAX"


async def test_activation_of_an_archive_waits_for_its_build(
    deployer: Running, builder: TinyBuilder
) -> None:
    await deployer.create("archive", archive=b"SLOW")
    waiting = asyncio.create_task(activate(deployer, "archive"))
    pending = await activate(deployer, "archive", seconds=0)
    assert pending.endpoint == ""
    builder.go_on.set()
    assert (await waiting).endpoint


async def test_ready_waits_for_gateways_but_not_for_ever(deployer: Running) -> None:
    gateway = Gateway(deployer, acks=False)
    await gateway.until(lambda: gateway.complete)
    begin = time.monotonic()
    function = await deployer.ready("hello")
    assert 1.5 < time.monotonic() - begin < 5
    assert function.state == State.STATE_READY
    await gateway.leave()


async def test_stream_that_does_not_say_hello_is_refused(deployer: Running) -> None:
    call = deployer.routes.SyncRoutes()
    await call.write(route_pb2.SyncRoutesRequest(ack=route_pb2.RouteAck(version=1)))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
