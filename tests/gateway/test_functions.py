"""What functions' callers rely on, through the real Envoy and real sockets."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from mayfly.v1.function_pb2 import State
from mayfly.v1.source_pb2 import Failure, Stage
from websockets.asyncio.client import connect as websocket

from tests.gateway.conftest import Running, eventually, running
from tests.gateway.deployer import Deployer, route
from tests.gateway.upstream import Request, echo, echo_websocket, serve


async def raw(port: int, request: bytes) -> bytes:
    """Send bytes as they are; return all that comes until the connection closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    return answer


async def warm(gateway: Running, function_id: str) -> None:
    """Ask once, and wait until Envoy reaches the function by itself."""
    await gateway.http.get(f"/f/{function_id}/")
    await gateway.deployer.put(*gateway.deployer.routes.values())


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/f/echo", "/"),
        ("/f/echo/", "/"),
        ("/f/echo?x=1", "/?x=1"),
        ("/f/echo//a", "//a"),
        ("/f/echo/a%2Fb;c=1//d/./../e", "/a%2Fb;c=1//d/./../e"),
        ("/f/echo/%41%7e?q=a+b%20c&&=;%2F#", None),
        (
            "/f/echo/%41%7e?q=a+b%20c&&=;%2F&x=%00%FF?/f/other/",
            "/%41%7e?q=a+b%20c&&=;%2F&x=%00%FF?/f/other/",
        ),
        ("/f/echo/f/other/x", "/f/other/x"),
    ],
)
async def test_path_and_query_arrive_byte_for_byte(
    gateway: Running, path: str, target: str | None, held: bool
) -> None:
    async with serve(gateway.directory / "f.sock") as upstream:
        await gateway.deployer.put(route("echo", upstream.endpoint))
        if not held:
            await warm(gateway, "echo")
        request = f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        answer = await raw(gateway.port, request.encode())
        if target is None:  # a fragment is no part of a request target (RFC 9110, 4.2.5)
            assert answer.startswith(b"HTTP/1.1 400")
            assert b'"reason":"INVALID_FIELD"' in answer
        else:
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["target"] == target


@pytest.mark.parametrize("held", [True, False])
async def test_headers_that_the_platform_sets_cannot_be_forged(
    gateway: Running, held: bool
) -> None:
    forged = {
        "x-mayfly-function": "a",
        "x-envoy-upstream-rq-timeout-ms": "1",
        "x-envoy-original-path": "/f/other/",
        "x-forwarded-prefix": "/evil",
        "x-forwarded-uri": "/f/other/",
        "x-request-id": "mine-1",
        "x-own": "kept",
    }
    async with serve(gateway.directory / "f.sock") as upstream:
        await gateway.deployer.put(route("echo", upstream.endpoint))
        if not held:
            await warm(gateway, "echo")
        response = await gateway.http.get("/f/echo/x", headers=forged)
        seen = response.json()["headers"]
        assert seen["x-forwarded-prefix"] == "/f/echo"
        assert seen["x-forwarded-uri"] == "/f/echo/x"
        assert seen["x-request-id"] == "mine-1" == response.headers["x-request-id"]
        assert seen["x-own"] == "kept"
        assert not [name for name in seen if name.startswith(("x-mayfly", "x-envoy"))]
        by_host = {**forged, "host": "echo.localhost"}
        seen = (await gateway.http.get("/x", headers=by_host)).json()["headers"]
        assert "x-forwarded-prefix" not in seen
        assert seen["x-forwarded-uri"] == "/x"


async def test_a_function_of_its_own_host_owns_every_path(gateway: Running) -> None:
    async with serve(gateway.directory / "f.sock") as upstream:
        await gateway.deployer.put(route("echo", upstream.endpoint))
        for path in ("/v1/functions", "/f/other/", "/healthz", "/mayfly.v1.FunctionService/X"):
            answer = await gateway.http.get(path, headers={"host": "ECHO.localhost:80"})
            assert answer.json()["target"] == path
        unknown = await gateway.http.get("/", headers={"host": "a.b.localhost"})
        assert unknown.status_code == 404
        assert unknown.json()["error"]["status"] == "NOT_FOUND"


@pytest.mark.parametrize("held", [True, False])
async def test_websocket_by_path_and_by_host_outlives_the_timeout(
    gateway: Running, held: bool
) -> None:
    async with serve(gateway.directory / "f.sock", _websocket_or_echo) as upstream:
        await gateway.deployer.put(route("ws", upstream.endpoint, timeout=0.3))
        if not held:
            await warm(gateway, "ws")
        for url, host in (("/f/ws/", None), ("/", "ws.localhost")):
            address = f"ws://{host or '127.0.0.1'}:{gateway.port}{url}"
            reach = {"host": "127.0.0.1", "port": gateway.port}
            async with websocket(address, proxy=None, **reach) as peer:
                await peer.send("one")
                assert await peer.recv() == "one"
                await asyncio.sleep(0.7)  # longer than the function's timeout
                await peer.send("two")
                assert await peer.recv() == "two"


async def _websocket_or_echo(request: Request) -> None:
    await (echo_websocket if request.headers.get("upgrade") else echo)(request)


@pytest.mark.parametrize("held", [True, False])
async def test_events_come_unbuffered_and_longer_than_the_timeout(
    gateway: Running, held: bool
) -> None:
    async def events(request: Request) -> None:
        if request.target == "/":
            return await echo(request)
        kind = b"content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        request.writer.write(b"HTTP/1.1 200 OK\r\n" + kind)
        for number in range(3):
            await request.chunk(f"data: {number} {time.monotonic()}\n\n".encode())
            await asyncio.sleep(0.5)
        await request.chunk(b"")
        return None

    async with serve(gateway.directory / "f.sock", events) as upstream:
        await gateway.deployer.put(route("sse", upstream.endpoint, timeout=0.6))
        if not held:
            await warm(gateway, "sse")
        lags: list[float] = []
        async with gateway.http.stream("GET", "/f/sse/events") as response:
            async for line in response.aiter_lines():
                if line:
                    lags.append(time.monotonic() - float(line.split()[2]))
        assert len(lags) == 3
        assert max(lags) < 0.45  # before the next one is sent


@pytest.mark.parametrize("held", [True, False])
async def test_50_mb_up_and_down(gateway: Running, held: bool) -> None:
    size = 50_000_000

    async def transfer(request: Request) -> None:
        if request.target == "/":
            return await echo(request)
        taken = 0
        async for data in request.body():
            taken += len(data)
        await request.respond(
            b"", headers=f"x-size: {taken}\r\n"
        ) if request.method == "HEAD" else None
        head = f"HTTP/1.1 200 OK\r\ncontent-length: {size}\r\nx-size: {taken}\r\n\r\n"
        request.writer.write(head.encode())
        block = b"x" * 500_000
        for _ in range(size // len(block)):
            request.writer.write(block)
            await request.writer.drain()
        return None

    async def upload() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"y" * 500_000

    async with serve(gateway.directory / "f.sock", transfer) as upstream:
        await gateway.deployer.put(route("big", upstream.endpoint, timeout=1))
        if not held:
            await warm(gateway, "big")
        received = 0
        async with gateway.http.stream("POST", "/f/big/up", content=upload()) as response:
            assert response.headers["x-size"] == str(size)
            async for data in response.aiter_bytes():
                received += len(data)
        assert received == size


@pytest.mark.parametrize("held", [True, False])
async def test_a_slow_upload_is_not_cut_by_the_timeout(gateway: Running, held: bool) -> None:
    async def slowly() -> AsyncIterator[bytes]:
        for _ in range(4):
            yield b"z" * 100
            await asyncio.sleep(0.2)

    async with serve(gateway.directory / "f.sock") as upstream:
        await gateway.deployer.put(route("slow", upstream.endpoint, timeout=0.4))
        if not held:
            await warm(gateway, "slow")
        answer = await gateway.http.post("/f/slow/x", content=slowly())
        assert answer.json()["size"] == 400


@pytest.mark.parametrize("held", [True, False])
async def test_no_response_in_time_is_504_json(gateway: Running, held: bool) -> None:
    async def never(request: Request) -> None:
        if request.target == "/":
            return await echo(request)
        await asyncio.sleep(30)
        return None

    async with serve(gateway.directory / "f.sock", never) as upstream:
        await gateway.deployer.put(route("late", upstream.endpoint, timeout=0.3))
        if not held:
            await warm(gateway, "late")
        began = time.monotonic()
        answer = await gateway.http.post("/f/late/x", content=b"body")
        assert 0.25 < time.monotonic() - began < 5
        assert answer.status_code == 504
        error = answer.json()["error"]
        assert (error["code"], error["reason"]) == (504, "FUNCTION_TIMEOUT")
        assert error["fix"]


@pytest.mark.parametrize("held", [True, False])
async def test_a_connection_that_breaks_off_is_502_json(gateway: Running, held: bool) -> None:
    async def crash(request: Request) -> None:
        if request.target == "/":
            return await echo(request)
        request.writer.transport.abort()
        raise ConnectionError

    async with serve(gateway.directory / "f.sock", crash) as upstream:
        await gateway.deployer.put(route("crash", upstream.endpoint))
        if not held:
            await warm(gateway, "crash")
        answer = await gateway.http.get("/f/crash/x")
        assert answer.status_code == 502
        assert answer.json()["error"]["reason"] == "FUNCTION_BROKE_OFF"


async def test_one_connection_a_request_where_the_route_says_so(gateway: Running) -> None:
    async with serve(gateway.directory / "f.sock") as upstream:
        one = route("one", upstream.endpoint, one_request_per_connection=True)
        many = route("many", upstream.endpoint)
        await gateway.deployer.put(one, many)
        await warm(gateway, "one")
        await warm(gateway, "many")
        numbers = [(await gateway.http.get("/f/one/x")).json()["connection"] for _ in range(4)]
        assert len(set(numbers)) == 4
        numbers = [(await gateway.http.get("/f/many/x")).json()["connection"] for _ in range(8)]
        assert len(set(numbers)) <= 2  # one a worker


async def test_unused_connections_are_closed_soon(gateway: Running) -> None:
    open_now: set[int] = set()

    async def count(request: Request) -> None:
        open_now.add(request.connection)
        await echo(request)
        if await request.reader.read(1) == b"":
            open_now.discard(request.connection)

    async with serve(gateway.directory / "f.sock", count) as upstream:
        await gateway.deployer.put(route("idle", upstream.endpoint))
        await warm(gateway, "idle")
        await gateway.http.get("/f/idle/x")

        async def none_is_open() -> bool:
            return not open_now

        await eventually(none_is_open)


async def test_requests_are_held_while_a_function_is_built(gateway: Running) -> None:
    path = gateway.directory / "f.sock"
    await gateway.deployer.put(route("new", "", state=State.STATE_BUILDING, timeout=0.2))
    waiting = [
        asyncio.create_task(gateway.http.post(f"/f/new/{n}?n={n}", content=b"b" * 5000))
        for n in range(20)
    ]
    await gateway.deployer.until(lambda: True)
    await asyncio.sleep(0.5)  # longer than its timeout, which begins when it is ready
    assert not any(task.done() for task in waiting)
    async with serve(path) as upstream:
        await gateway.deployer.put(route("new", upstream.endpoint, timeout=0.2))
        for number, task in enumerate(waiting):
            answer = await task
            assert answer.status_code == 200
            assert (answer.json()["target"], answer.json()["size"]) == (
                f"/{number}?n={number}",
                5000,
            )


async def test_a_build_that_fails_answers_what_waits_with_503(gateway: Running) -> None:
    await gateway.deployer.put(route("new", "", state=State.STATE_BUILDING))
    waiting = asyncio.create_task(gateway.http.get("/f/new/"))
    await asyncio.sleep(0.1)
    failed = route("new", "", state=State.STATE_FAILED)
    failed.failure.CopyFrom(
        Failure(stage=Stage.STAGE_BUILD, reason="SOURCE_SYNTAX", message="line 3", fix="close it")
    )
    await gateway.deployer.put(failed)
    for answer in (await waiting, await gateway.http.get("/f/new/")):
        assert answer.status_code == 503
        assert answer.json()["error"] == {
            "code": 503,
            "status": "UNAVAILABLE",
            "reason": "SOURCE_SYNTAX",
            "message": "line 3",
            "fix": "close it",
            "stage": "build",
        }


async def test_no_first_request_fails_in_many_creations(gateway: Running) -> None:
    async with serve(gateway.directory / "f.sock") as upstream:
        failures: list[str] = []

        async def create_and_ask(number: int) -> None:
            name = f"fn-{number}"
            await gateway.deployer.put(route(name, upstream.endpoint), wait=False)
            for turn in range(4):
                answer = await gateway.http.get(f"/f/{name}/{turn}")
                if answer.status_code != 200:
                    failures.append(f"{name} {turn}: {answer.status_code} {answer.text}")

        for start in range(0, 320, 16):
            await asyncio.gather(*(create_and_ask(n) for n in range(start, start + 16)))
        assert failures == []


async def test_a_removed_function_answers_no_more_once_acknowledged(gateway: Running) -> None:
    async with serve(gateway.directory / "f.sock") as upstream:
        for number in range(40):
            await gateway.deployer.put(route("gone", upstream.endpoint, uid=f"u{number}"))
            await warm(gateway, "gone")
            assert (await gateway.http.get("/f/gone/")).status_code == 200
            await gateway.deployer.remove("gone")
            answers = await asyncio.gather(*(gateway.http.get("/f/gone/") for _ in range(4)))
            assert [a.status_code for a in answers] == [404] * 4
            assert answers[0].json()["error"]["reason"] == "FUNCTION_ENDED"


async def test_a_stale_removal_leaves_the_newer_function_alone(gateway: Running) -> None:
    async with serve(gateway.directory / "f.sock") as upstream:
        await gateway.deployer.put(route("again", upstream.endpoint, uid="new"))
        kept = gateway.deployer.routes["again"]
        await gateway.deployer.remove("again", uid="old")
        gateway.deployer.routes["again"] = kept
        assert (await gateway.http.get("/f/again/")).status_code == 200


async def test_a_new_function_of_the_same_name_is_reached(gateway: Running) -> None:
    async def name(request: Request) -> None:
        await request.respond(b"second")

    async with (
        serve(gateway.directory / "1.sock") as first,
        serve(gateway.directory / "2.sock", name) as second,
    ):
        await gateway.deployer.put(route("again", first.endpoint, uid="1"))
        await warm(gateway, "again")
        await gateway.deployer.put(route("again", second.endpoint, uid="2"))
        for _ in range(5):
            assert (await gateway.http.get("/f/again/")).text == "second"


async def test_http_1_0_and_head_and_expect(gateway: Running) -> None:
    async with serve(gateway.directory / "f.sock") as upstream:
        await gateway.deployer.put(route("old", upstream.endpoint))
        answer = await raw(gateway.port, b"GET /f/old/x HTTP/1.0\r\n\r\n")
        assert b" 200 " in answer.split(b"\r\n")[0]
        head = await gateway.http.head("/f/unknown/x")
        assert (head.status_code, head.content) == (404, b"")


async def test_the_backlog_of_a_function_that_starts_is_waited_in(gateway: Running) -> None:
    """A socket that nobody accepts from yet, as the platform makes it; its backlog is full."""
    path = str(gateway.directory / "f.sock")
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen(1)
        listening.setblocking(False)
        cold = route("cold", f"unix:{path}", state=State.STATE_DEPLOYING, timeout=0.2)
        await gateway.deployer.put(cold)
        waiting = [asyncio.create_task(gateway.http.get(f"/f/cold/{n}")) for n in range(8)]
        await asyncio.wait(waiting, timeout=0.5)
        assert not any(task.done() for task in waiting)
        for _ in waiting:
            connection, _ = await asyncio.wait_for(loop.sock_accept(listening), 5)
            with connection:
                await loop.sock_recv(connection, 65536)
                await loop.sock_sendall(
                    connection, b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
                )
        assert {answer.status_code for answer in await asyncio.gather(*waiting)} == {200}


async def test_a_full_backlog_of_a_warm_function_is_waited_for(
    directory: Path, deployer: Deployer
) -> None:
    """Envoy itself tries again: nothing of the request has reached the function."""
    path = str(directory / "f.sock")
    loop = asyncio.get_running_loop()
    deployer.routes["full"] = route("full", f"unix:{path}")  # in the snapshot: Envoy has it
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as other:
        listening.bind(path)
        listening.listen(0)
        listening.setblocking(False)
        other.connect(path)  # takes the one place
        async with running(directory, deployer) as gateway:
            await deployer.connected()
            waiting = asyncio.create_task(gateway.http.get("/f/full/x"))
            # Envoy tries eight times at random intervals, 0.6 s in the mean: look early among them.
            await asyncio.wait([waiting], timeout=0.05)
            assert not waiting.done(), waiting.result().text
            first, _ = await loop.sock_accept(listening)
            first.close()
            connection, _ = await asyncio.wait_for(loop.sock_accept(listening), 5)
            with connection:
                assert b"/x" in await loop.sock_recv(connection, 65536)
                await loop.sock_sendall(connection, b"HTTP/1.1 204 OK\r\n\r\n")
                assert (await waiting).status_code == 204


async def test_a_request_is_held_for_so_long_only(directory: Path, deployer: Deployer) -> None:
    async with running(directory, deployer, hold_timeout=0.3) as gateway:
        await deployer.connected()
        await deployer.put(route("slow", "", state=State.STATE_BUILDING))
        answer = await gateway.http.get("/f/slow/")
        assert answer.status_code == 504
        assert answer.json()["error"]["status"] == "DEADLINE_EXCEEDED"


async def test_metrics_are_served_where_the_setting_says(
    directory: Path, deployer: Deployer
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    async with running(directory, deployer, gateway_metrics_listen=address) as gateway:
        await deployer.connected()
        await deployer.put(route("a", "unix:/nowhere"))
        text = (await gateway.http.get(f"http://{address}/metrics")).text
        assert "mayfly_gateway_routes 1.0" in text
        assert "mayfly_gateway_synced 1.0" in text


@pytest.mark.parametrize("told", [True, False])
async def test_what_ends_before_it_has_a_route_here_holds_nobody(
    gateway: Running, told: bool
) -> None:
    deployer = gateway.deployer
    deployer.routes["brief"] = route("brief", "", state=State.STATE_PENDING)
    async with asyncio.timeout(5):
        waiting = asyncio.create_task(gateway.http.get("/f/brief/"))
        await deployer.until(lambda: "brief" in deployer.activations)
        if told:
            await deployer.remove("brief")
        else:
            del deployer.routes["brief"]
            deployer.ended.add("brief")
        answer = await waiting
    assert (answer.status_code, answer.json()["error"]["reason"]) == (404, "FUNCTION_ENDED")
