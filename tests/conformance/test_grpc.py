"""The same port for gRPC: generated clients, reflection, health, gRPC-Web, grpcurl."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import pytest_asyncio
from google.protobuf import descriptor_pool, duration_pb2, field_mask_pb2, message_factory
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from mayfly.v1 import (
    build_pb2,
    build_pb2_grpc,
    function_pb2,
    function_pb2_grpc,
    janitor_pb2,
    janitor_pb2_grpc,
    reclaimer_pb2,
    reclaimer_pb2_grpc,
    route_pb2,
    route_pb2_grpc,
)

from tests.conformance.door import Door

HELLO = "def handler(event, ctx):\n    return 'here'\n"
GRPCURL = "github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3"
PUBLIC = {"mayfly.v1.FunctionService", "mayfly.v1.BuildService", "mayfly.v1.JanitorService"}


@pytest_asyncio.fixture
async def channel(mayfly: Door) -> AsyncIterator[grpc.aio.Channel]:
    """A gRPC channel to the public port."""
    async with mayfly.channel() as opened:
        yield opened


def create_request(mayfly: Door, code: str = HELLO) -> function_pb2.CreateFunctionRequest:
    """Return a request for a new function with a lease of a minute."""
    return function_pb2.CreateFunctionRequest(
        function_id=mayfly.new_id("grpc"),
        function=function_pb2.Function(handler=code, ttl=duration_pb2.Duration(seconds=60)),
    )


def error_info(error: grpc.aio.AioRpcError) -> error_details_pb2.ErrorInfo:
    """Return the ErrorInfo that a failed call carries."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status = status_pb2.Status.FromString(value)
            for detail in status.details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info):
                    return info
    raise AssertionError(f"no ErrorInfo in {error}")


async def test_a_life_by_the_generated_client(mayfly: Door, channel: grpc.aio.Channel) -> None:
    functions = function_pb2_grpc.FunctionServiceStub(channel)
    janitor = janitor_pb2_grpc.JanitorServiceStub(channel)
    made = (await functions.CreateFunction(create_request(mayfly))).function
    assert (await mayfly.http.get(made.url)).text.strip('"') == "here"
    states: list[int] = []
    async for response in functions.WatchFunction(
        function_pb2.WatchFunctionRequest(name=made.name, until_settled=True)
    ):
        if response.event.HasField("state"):
            states.append(response.event.state.state)
    assert states[-1] == function_pb2.STATE_READY
    renewed = await functions.RenewFunction(
        function_pb2.RenewFunctionRequest(name=made.name, ttl=duration_pb2.Duration(seconds=90))
    )
    assert renewed.function.expire_time.ToSeconds() > made.expire_time.ToSeconds()
    updated = await functions.UpdateFunction(
        function_pb2.UpdateFunctionRequest(
            function=function_pb2.Function(name=made.name, labels={"a": "b"}),
            update_mask=field_mask_pb2.FieldMask(paths=["labels"]),
        )
    )
    assert updated.function.labels == {"a": "b"}
    listed = await functions.ListFunctions(
        function_pb2.ListFunctionsRequest(filter="labels.a=b", page_size=1000)
    )
    assert made.name in {f.name for f in listed.functions}
    deleted = await functions.DeleteFunction(function_pb2.DeleteFunctionRequest(name=made.name))
    assert deleted.function.end_reason == function_pb2.END_REASON_DELETED
    await mayfly.verified_receipt({"name": made.name, "uid": made.uid})
    name = made.name.replace("functions/", "receipts/")
    receipt = (await janitor.GetReceipt(janitor_pb2.GetReceiptRequest(name=name))).receipt
    assert receipt.verified
    trace = await functions.GetTrace(function_pb2.GetTraceRequest(name=made.name))
    assert trace.trace_id == made.trace_id


async def test_errors_carry_reason_field_and_fix(mayfly: Door, channel: grpc.aio.Channel) -> None:
    functions = function_pb2_grpc.FunctionServiceStub(channel)
    request = create_request(mayfly)
    request.function.ttl.FromSeconds(-5)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await functions.CreateFunction(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    info = error_info(caught.value)
    assert (info.reason, info.domain) == ("INVALID_TTL", "mayfly")
    assert info.metadata["field"].endswith("ttl")
    assert info.metadata["fix"]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await functions.GetFunction(
            function_pb2.GetFunctionRequest(name=f"functions/{mayfly.new_id('no')}")
        )
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await functions.GetFunction(function_pb2.GetFunctionRequest(name="nonsense"))
    assert caught.value.code() in {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND}


async def test_a_cancelled_watch_leaves_the_channel_well(
    mayfly: Door, channel: grpc.aio.Channel
) -> None:
    functions = function_pb2_grpc.FunctionServiceStub(channel)
    made = (await functions.CreateFunction(create_request(mayfly))).function
    for _ in range(20):
        call = functions.WatchFunction(function_pb2.WatchFunctionRequest(name=made.name))
        await call.read()
        call.cancel()
    found = await functions.GetFunction(function_pb2.GetFunctionRequest(name=made.name))
    assert found.function.uid == made.uid


async def test_health_of_each_public_service(channel: grpc.aio.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", *PUBLIC):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING, service
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health.Check(health_pb2.HealthCheckRequest(service="nope.Service"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_reflection_is_enough_to_call(mayfly: Door) -> None:
    def by_reflection(name: str) -> Any:
        with grpc.insecure_channel(mayfly.target) as plain:
            database = ProtoReflectionDescriptorDatabase(plain)
            assert set(database.get_services()) >= PUBLIC
            pool = descriptor_pool.DescriptorPool(database)
            method = pool.FindServiceByName("mayfly.v1.FunctionService").FindMethodByName(
                "GetFunction"
            )
            request = message_factory.GetMessageClass(method.input_type)(name=name)
            answer = message_factory.GetMessageClass(method.output_type)
            call = plain.unary_unary(
                "/mayfly.v1.FunctionService/GetFunction",
                request_serializer=lambda m: m.SerializeToString(),
                response_deserializer=answer.FromString,
            )
            return call(request, timeout=10)

    function = await mayfly.create(handler=HELLO)
    found = await asyncio.to_thread(by_reflection, function["name"])
    assert found.function.uid == function["uid"]


async def test_inner_services_are_not_reachable(mayfly: Door, channel: grpc.aio.Channel) -> None:
    refused = {
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.NOT_FOUND,
    }
    function = await mayfly.ready(handler=HELLO)
    builds = build_pb2_grpc.BuildServiceStub(channel)
    reclaimer = reclaimer_pb2_grpc.ReclaimerServiceStub(channel)
    routes = route_pb2_grpc.RouteServiceStub(channel)
    target = reclaimer_pb2.ReclaimTarget(name=function["name"], uid=function["uid"])
    calls = [
        builds.CreateBuild(build_pb2.CreateBuildRequest(runtime="python")),
        builds.HoldBuild(build_pb2.HoldBuildRequest(name=function["build"], function_uid="x")),
        builds.ReleaseBuild(
            build_pb2.ReleaseBuildRequest(name=function["build"], function_uid=function["uid"])
        ),
        builds.FindLostImages(build_pb2.FindLostImagesRequest(names=[function["build"]])),
        reclaimer.Reclaim(reclaimer_pb2.ReclaimRequest(targets=[target])),
        routes.ActivateFunction(route_pb2.ActivateFunctionRequest(function_id="x")),
    ]
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() in refused, caught.value
    watch = reclaimer.WatchDeadlines(reclaimer_pb2.WatchDeadlinesRequest())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await watch.read()
    assert caught.value.code() in refused
    assert (await mayfly.call(function)).status_code == 200


async def test_unknown_methods_are_unimplemented(channel: grpc.aio.Channel) -> None:
    call = channel.unary_unary("/mayfly.v1.FunctionService/Nope")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"")
    assert caught.value.code() in {grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.NOT_FOUND}


def web_frames(body: bytes) -> tuple[list[bytes], dict[str, str]]:
    """Cut a gRPC-Web body into messages and trailers."""
    messages: list[bytes] = []
    trailers: dict[str, str] = {}
    while body:
        flag, size = body[0], int.from_bytes(body[1:5])
        frame, body = body[5 : 5 + size], body[5 + size :]
        if flag & 0x80:
            for line in frame.decode().splitlines():
                name, _, value = line.partition(":")
                trailers[name.lower()] = value.strip()
        else:
            messages.append(frame)
    return messages, trailers


def web_text(body: bytes) -> bytes:
    """Decode a gRPC-Web text body: pieces of base64, each with its own padding."""
    return b"".join(base64.b64decode(piece) for piece in re.findall(rb"[^=]+=*", body))


async def web_call(mayfly: Door, method: str, message: bytes, text: bool = False) -> httpx.Response:
    """Send one message as a browser's gRPC-Web client does."""
    framed = b"\0" + len(message).to_bytes(4) + message
    kind = "application/grpc-web-text" if text else "application/grpc-web+proto"
    return await mayfly.http.post(
        f"/mayfly.v1.FunctionService/{method}",
        content=base64.b64encode(framed) if text else framed,
        headers={"content-type": kind, "accept": kind, "x-grpc-web": "1"},
    )


@pytest.mark.parametrize("text", [False, True])
async def test_grpc_web(mayfly: Door, text: bool) -> None:
    function = await mayfly.ready(handler=HELLO)
    request = function_pb2.GetFunctionRequest(name=function["name"])
    response = await web_call(mayfly, "GetFunction", request.SerializeToString(), text)
    assert response.status_code == 200
    body = web_text(response.content) if text else response.content
    messages, trailers = web_frames(body)
    assert trailers["grpc-status"] == "0"
    answer = function_pb2.GetFunctionResponse.FromString(messages[0])
    assert answer.function.uid == function["uid"]


async def test_grpc_web_streams_and_errors(mayfly: Door) -> None:
    function = await mayfly.ready(handler=HELLO)
    watch = function_pb2.WatchFunctionRequest(name=function["name"], until_settled=True)
    response = await web_call(mayfly, "WatchFunction", watch.SerializeToString())
    messages, trailers = web_frames(response.content)
    assert trailers["grpc-status"] == "0"
    events = [function_pb2.WatchFunctionResponse.FromString(m).event for m in messages]
    assert [e.sequence for e in events] == list(range(1, len(events) + 1))
    missing = function_pb2.GetFunctionRequest(name=f"functions/{mayfly.new_id('no')}")
    response = await web_call(mayfly, "GetFunction", missing.SerializeToString())
    _, trailers = web_frames(response.content)
    assert trailers.get("grpc-status", response.headers.get("grpc-status")) == "5"


@pytest.fixture(scope="session")
def grpcurl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real grpcurl, built from its Go module."""
    go = shutil.which("go")
    if go is None:
        pytest.skip("no Go toolchain on PATH: grpcurl cannot be built")
    target = tmp_path_factory.mktemp("grpcurl")
    built = subprocess.run(
        [go, "install", GRPCURL],
        env=os.environ | {"GOBIN": str(target), "GOFLAGS": "-mod=mod"},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert built.returncode == 0, built.stderr[-2000:]
    return target / "grpcurl"


@pytest.mark.needs_go
@pytest.mark.needs_index
@pytest.mark.timeout(450)
async def test_grpcurl_with_nothing_but_reflection(mayfly: Door, grpcurl: Path) -> None:
    async def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(
            subprocess.run,
            [str(grpcurl), "-plaintext", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    listed = await run(mayfly.target, "list")
    assert listed.returncode == 0, listed.stderr
    assert set(listed.stdout.split()) >= PUBLIC
    described = await run(mayfly.target, "describe", "mayfly.v1.FunctionService")
    assert "CreateFunctionRequest" in described.stdout, described.stderr
    function_id = mayfly.new_id("grpcurl")
    body = {"function_id": function_id, "function": {"handler": HELLO, "ttl": "60s"}}
    made = await run(
        "-d", json.dumps(body), mayfly.target, "mayfly.v1.FunctionService/CreateFunction"
    )
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["function"]["name"] == f"functions/{function_id}"
    assert (await mayfly.call(function_id)).text.strip('"') == "here"
    watch = {"name": f"functions/{function_id}", "until_settled": True}
    watched = await run(
        "-d", json.dumps(watch), mayfly.target, "mayfly.v1.FunctionService/WatchFunction"
    )
    assert "STATE_READY" in watched.stdout, watched.stderr
    body["function"]["ttl"] = "-5s"
    refused = await run(
        "-d", json.dumps(body), mayfly.target, "mayfly.v1.FunctionService/CreateFunction"
    )
    assert refused.returncode != 0
    assert "INVALID_TTL" in refused.stderr
