"""The platform's own doors: /v1, gRPC, gRPC-Web, pages."""

from __future__ import annotations

import base64
import json
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from mayfly.v1 import (
    build_pb2,
    build_pb2_grpc,
    function_pb2,
    function_pb2_grpc,
    janitor_pb2,
    janitor_pb2_grpc,
    route_pb2,
    route_pb2_grpc,
)

from tests.gateway.conftest import Running, eventually, running
from tests.gateway.deployer import SERVICES, Deployer, route
from tests.gateway.upstream import serve

CREATE = "/v1/functions?function_id=a"


async def test_json_becomes_grpc_and_response_body_is_honoured(gateway: Running) -> None:
    body = {"runtime": "python", "handler": "x = 1", "ttl": "600s", "env": {"A": "b"}}
    made = await gateway.http.post(CREATE, json=body)
    assert made.status_code == 200
    assert made.headers["content-length"] == str(len(made.content))
    assert made.json() == {**body, "name": "functions/a", "state": "STATE_PENDING"}
    assert (await gateway.http.get("/v1/functions/hello")).json() == {"name": "functions/hello"}
    listed = await gateway.http.get(
        "/v1/functions", params={"filter": "labels.a=b c", "page_size": 3}
    )
    assert listed.json() == {"functions": [{"name": "labels.a=b c"}, {"name": "3"}]}
    runtimes = await gateway.http.get("/v1/runtimes")
    assert runtimes.json() == {"runtimes": [{"name": "python", "available": True}]}
    assert (await gateway.http.get("/v1/janitor:status")).json() == {"deadlines": 7}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"runtime": "python", "handlr": "x"}', "function.handlr"),
        (b'{"resources": {"memry": 1}}', "function.resources.memry"),
        (b'{"env": {"any": "x"}, "labels": {"also any": "y"}, "oops": null}', "function.oops"),
        (b'{"handler": "\\"},{\\u0022", "nope": [{"a": 1}]}', "function.nope"),
        (b'{"port": "abc"}', "function.port"),
        (b'{"ttl": "5 minutes"}', "function.ttl"),
        (b'{"ttl": 5}', "function.ttl"),
        (b'{"protocol": "PROTOCOL_X"}', "function.protocol"),
        (b'{"archive": "***"}', "function.archive"),
        (b'{"handler": "x", "script": "y"}', "function.source"),
        (b'{"runtime": "pyth', None),
        (b'{"runtime" "pyth"}', None),
        (b"[1]", None),
        (b"hello", None),
    ],
)
async def test_a_wrong_body_is_400_with_reason_field_and_fix(
    gateway: Running, body: bytes, field: str | None
) -> None:
    answer = await gateway.http.post(CREATE, content=body)
    status = _status(answer, 400)
    assert status["code"] == 3
    info = _info(status)
    expected = "INVALID_SOURCE" if field == "function.source" else "INVALID_FIELD"
    assert (info["reason"], info["domain"]) == (expected, "mayfly")
    assert info["metadata"].get("field") == field
    assert info["metadata"]["fix"]
    assert status["message"]


async def test_json_that_is_right_passes_whatever_it_looks_like(gateway: Running) -> None:
    handler = 'def handler(e, c):\n    return {"a": [1, "}"], "\\\\": "é\U0001f600"}\n' * 5000
    body = {"handler": handler, "idleTimeout": "5s", "min_instances": 1, "labels": {"x": "1"}}
    for content in (json.dumps(body), json.dumps(body, indent=2, ensure_ascii=False)):
        answer = await gateway.http.post(CREATE, content=content.encode())
        assert answer.status_code == 200, answer.text[:500]
        assert answer.json()["handler"] == handler


@pytest.mark.parametrize(
    ("query", "field"),
    [("pgsize=3", "pgsize"), ("page_size=abc", "page_size")],
)
async def test_a_wrong_query_parameter_is_400(gateway: Running, query: str, field: str) -> None:
    info = _info(_status(await gateway.http.get(f"/v1/functions?{query}"), 400))
    assert (info["reason"], info["metadata"]["field"]) == ("INVALID_FIELD", field)


async def test_other_errors_are_statuses_too(gateway: Running) -> None:
    for verb, path in (("GET", "/v1/nope"), ("PUT", "/v1/functions/hello"), ("POST", "/v1/")):
        answer = await gateway.http.request(verb, path)
        assert _info(_status(answer, 404))["reason"] == "NOT_FOUND"
    missing = _status(await gateway.http.get("/v1/functions/nope"), 404)
    assert (missing["code"], _info(missing)["metadata"]) == (5, {"fix": "list"})
    refused = _status(await gateway.http.post(CREATE, json={"runtime": "cobol"}), 400)
    assert _info(refused)["metadata"] == {"field": "function.runtime", "fix": "use python"}
    assert refused["details"][1]["fieldViolations"][0]["field"] == "function.runtime"


async def test_a_body_over_the_limit_is_400(directory: Any, deployer: Deployer) -> None:
    async with running(directory, deployer, api_body_bytes=500_000) as gateway:
        fits = await gateway.http.post(CREATE, json={"handler": "x" * 400_000})
        assert fits.status_code == 200
        answer = await gateway.http.post(CREATE, json={"handler": "x" * 600_000})
        assert _info(_status(answer, 400))["reason"] == "SOURCE_TOO_LARGE"


async def test_a_service_that_is_away_is_503(gateway: Running) -> None:
    assert (await gateway.http.get("/healthz")).status_code == 200
    await gateway.deployer.stop()
    answer = _status(await gateway.http.get("/v1/functions/hello"), 503)
    assert (answer["code"], _info(answer)["reason"]) == (14, "UNAVAILABLE")

    async def is_healthy() -> bool:
        return (await gateway.http.get("/healthz")).status_code == 200

    async def is_not_healthy() -> bool:
        return not await is_healthy()

    await eventually(is_not_healthy)
    health = await gateway.http.get("/healthz")
    away = dict.fromkeys(("deployer", "builder", "janitor"), "NOT_SERVING")
    assert health.json()["parts"] == {"gateway": "SERVING", **away}
    unknown = await gateway.http.get("/f/unknown/")
    assert (unknown.status_code, unknown.json()["error"]["reason"]) == (503, "UNAVAILABLE")
    await gateway.deployer.start()
    await eventually(is_healthy)


@pytest.mark.parametrize("sse", [True, False])
async def test_streams_come_as_they_happen(gateway: Running, sse: bool) -> None:
    headers = {"accept": "text/event-stream"} if sse else {}
    async with gateway.http.stream("GET", "/v1/functions/hello:watch", headers=headers) as response:
        kind = "text/event-stream" if sse else "application/json"
        assert response.headers["content-type"] == kind
        lines = (line async for line in response.aiter_lines() if line)
        first = await anext(lines)
        assert not gateway.deployer.watch_gate.is_set()  # the second is not sent yet
        gateway.deployer.watch_gate.set()
        second = await anext(lines)
    expected = [json.dumps({"event": {"sequence": n}}, separators=(",", ":")) for n in "12"]
    assert [first, second] == ([f"data: {e}" for e in expected] if sse else expected)


async def test_pages(gateway: Running) -> None:
    index = await gateway.http.get("/")
    assert index.json()["openapi"].endswith("/openapi.json")
    html = await gateway.http.get("/", headers={"accept": "text/html"})
    assert html.headers["content-type"].startswith("text/html")
    document = (await gateway.http.get("/openapi.json")).json()
    assert "/v1/functions" in document["paths"]
    assert (await gateway.http.head("/openapi.json")).content == b""
    nothing = await gateway.http.get("/nothing")
    assert (nothing.status_code, nothing.json()["error"]["reason"]) == (404, "NOT_FOUND")
    wrong = await gateway.http.post("/healthz")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (404, 404)


async def test_native_grpc_by_service_name(gateway: Running) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.port}") as channel:
        functions = function_pb2_grpc.FunctionServiceStub(channel)
        got = await functions.GetFunction(function_pb2.GetFunctionRequest(name="functions/hello"))
        assert got.function.name == "functions/hello"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await functions.GetFunction(function_pb2.GetFunctionRequest(name="functions/x"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert caught.value.details() == "no functions/x"
        gateway.deployer.watch_gate.set()
        request = function_pb2.WatchFunctionRequest(name="functions/hello")
        assert [m.event.sequence async for m in functions.WatchFunction(request)] == [1, 2]
        builds = build_pb2_grpc.BuildServiceStub(channel)
        assert (await builds.ListRuntimes(build_pb2.ListRuntimesRequest())).runtimes
        janitor = janitor_pb2_grpc.JanitorServiceStub(channel)
        assert (await janitor.GetStatus(janitor_pb2.GetStatusRequest())).deadlines == 7


async def test_internal_methods_are_refused(gateway: Running) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.port}") as channel:
        builds = build_pb2_grpc.BuildServiceStub(channel)
        for call in (
            builds.CreateBuild(build_pb2.CreateBuildRequest()),
            builds.HoldBuild(build_pb2.HoldBuildRequest()),
            builds.ReleaseBuild(build_pb2.ReleaseBuildRequest()),
            builds.FindLostImages(build_pb2.FindLostImagesRequest()),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        routes = route_pb2_grpc.RouteServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await routes.ActivateFunction(route_pb2.ActivateFunctionRequest(function_id="hello"))
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert not gateway.deployer.activations


async def test_reflection_and_health(gateway: Running) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", *SERVICES):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        symbol = reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICES[0])
        answers = [a async for a in reflection.ServerReflectionInfo(iter([ask, symbol]))]
        listed = {service.name for service in answers[0].list_services_response.service}
        assert set(SERVICES) < listed
        assert "mayfly.v1.RouteService" not in listed
        assert answers[1].file_descriptor_response.file_descriptor_proto


@pytest.mark.parametrize("text", [True, False])
async def test_grpc_web(gateway: Running, text: bool) -> None:
    request = function_pb2.GetFunctionRequest(name="functions/hello").SerializeToString()
    frame = b"\0" + len(request).to_bytes(4, "big") + request
    kind = f"application/grpc-web{'-text' if text else ''}"
    answer = await gateway.http.post(
        "/mayfly.v1.FunctionService/GetFunction",
        content=base64.b64encode(frame) if text else frame,
        headers={"content-type": f"{kind}+proto", "accept": kind},
    )
    assert answer.status_code == 200
    content = base64.b64decode(answer.content) if text else answer.content
    size = int.from_bytes(content[1:5], "big")
    got = function_pb2.GetFunctionResponse.FromString(content[5 : 5 + size])
    assert got.function.name == "functions/hello"
    assert b"grpc-status:0" in content[5 + size :].replace(b" ", b"")


async def test_browsers_may_call_where_the_setting_says_so(
    directory: Any, deployer: Deployer
) -> None:
    preflight = {
        "origin": "https://app.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type,x-grpc-web",
    }
    web = "/mayfly.v1.FunctionService/GetFunction"
    async with running(directory, deployer, cors_origins="https://app.example") as gateway:
        for path in ("/v1/functions", web):
            allowed = await gateway.http.options(path, headers=preflight)
            assert allowed.status_code == 200, path
            assert allowed.headers["access-control-allow-origin"] == "https://app.example"
            other = {**preflight, "origin": "https://other.example"}
            refused = await gateway.http.options(path, headers=other)
            assert "access-control-allow-origin" not in refused.headers
        answer = await gateway.http.get("/v1/runtimes", headers={"origin": "https://app.example"})
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        async with serve(directory / "f.sock") as upstream:
            await deployer.connected()
            await deployer.put(route("own", upstream.endpoint))
            seen = (await gateway.http.options("/f/own/x", headers=preflight)).json()
            assert seen["method"] == "OPTIONS"  # functions answer preflights themselves


def _status(answer: httpx.Response, code: int) -> dict[str, Any]:
    assert answer.status_code == code, answer.text
    assert answer.headers["content-type"] == "application/json"
    return answer.json()


def _info(status: dict[str, Any]) -> dict[str, Any]:
    (info,) = [d for d in status["details"] if d["@type"].endswith("google.rpc.ErrorInfo")]
    return info
