"""Health for probes, and a stop that costs no request."""

from __future__ import annotations

import asyncio
import itertools
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from libs.rpc.process import StartError
from services.gateway.sync import Sync
from tests.gateway.conftest import Running, eventually, running
from tests.gateway.deployer import Deployer, route
from tests.gateway.upstream import Request, echo, serve


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def status(address: str, service: str) -> str:
    """What `grpc.health.v1` says; "" where nobody answers."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=2)
        except grpc.aio.AioRpcError:
            return ""
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


@asynccontextmanager
async def stoppable(
    directory: Path, deployer: Deployer, **settings: Any
) -> AsyncIterator[tuple[Running, Any]]:
    """A gateway that is connected, and a function that begins its stop and returns its task."""
    context = running(directory, deployer, **settings)
    made = await context.__aenter__()
    stopping: list[asyncio.Task[Any]] = []

    def stop() -> asyncio.Task[Any]:
        stopping.append(asyncio.create_task(context.__aexit__(None, None, None)))
        return stopping[0]

    try:
        await deployer.connected()
        yield made, stop
    finally:
        await (stopping[0] if stopping else stop())


async def test_readiness_needs_the_routes_once_and_liveness_nothing(directory: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    deployer = Deployer(f"unix:{directory}/late.sock")
    async with running(directory, deployer, gateway_health_listen=address) as gateway:

        async def ready() -> bool:
            return await status(address, "readiness") == "SERVING"

        assert await status(address, "liveness") == "SERVING"
        assert await status(address, "readiness") == "NOT_SERVING"
        health = await gateway.http.get("/healthz")
        assert health.json()["parts"]["gateway"] == "NOT_SERVING"
        await deployer.start()
        await eventually(ready)
        assert await status(address, "") == "SERVING"
        await deployer.connected()
        await deployer.stop()
        await deployer.until(lambda: not deployer.gateways)
        assert await ready()  # functions go on
        assert await status(address, "liveness") == "SERVING"


async def test_a_stop_is_not_lost_in_a_stream_that_cannot_be_opened() -> None:
    def opened(*_: Any, **__: Any) -> Any:
        return lambda requests: Unopened()

    class Unopened:
        """As grpc.aio's: its own failure takes the place of a cancellation."""

        def cancel(self) -> None:
            pass

        async def __aiter__(self) -> AsyncIterator[Any]:
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            nothing = grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, nothing, nothing)
            yield

    channel: Any = SimpleNamespace(stream_stream=opened, unary_unary=opened)
    routes: Any = SimpleNamespace(
        activity=SimpleNamespace(), synced=asyncio.Event(), stream_ended=lambda: None
    )
    inventory: Any = None
    running = asyncio.create_task(Sync(channel, "one", routes, inventory).run())
    await asyncio.sleep(0)
    running.cancel()
    async with asyncio.timeout(5):
        await asyncio.wait([running])
    assert running.cancelled()


async def test_a_taken_health_port_is_named(directory: Path, deployer: Deployer) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(StartError, match=f"MAYFLY_GATEWAY_HEALTH_LISTEN: .* {address}"):
            async with running(directory, deployer, gateway_health_listen=address):
                pass


async def test_a_stop_is_said_at_once_and_connections_are_taken_for_a_while(
    directory: Path, deployer: Deployer
) -> None:
    address = f"127.0.0.1:{free_port()}"
    settings = {"gateway_health_listen": address, "shutdown_delay": 3.0}
    async with (
        serve(directory / "f.sock") as upstream,
        stoppable(directory, deployer, **settings) as (gateway, stop),
    ):
        await deployer.put(route("f", upstream.endpoint))
        kept = await gateway.http.get("/f/f/")
        assert "connection" not in kept.headers
        stopping = stop()
        began = time.monotonic()

        async def not_ready() -> bool:
            return await status(address, "readiness") == "NOT_SERVING"

        await eventually(not_ready, 2.0)
        assert await status(address, "liveness") == "SERVING"
        async with httpx.AsyncClient(base_url=gateway.url, trust_env=False) as http:
            assert (await http.get("/healthz")).status_code == 503
            answer = await http.get("/f/f/")
            assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        assert time.monotonic() - began < 2.9
        await stopping
        assert 2.9 < time.monotonic() - began < 8


async def test_a_load_over_two_gateways_loses_nothing_when_one_stops(
    directory: Path, deployer: Deployer
) -> None:
    """New connections go to who is ready, as a Service has it; kept ones end by themselves."""
    ports = free_port(), free_port()
    delay = {"shutdown_delay": 1.0, "envoy_concurrency": 1}
    statuses: list[int] = []
    ended: list[str] = []
    done = asyncio.Event()

    async def slowly(request: Request) -> None:
        if request.target == "/slow":
            await asyncio.sleep(0.3)
        await echo(request)

    for name in ("one", "two"):
        (directory / name).mkdir()
    async with (
        serve("127.0.0.2:0", slowly) as upstream,
        stoppable(
            directory / "one", deployer, gateway_health_listen=f"127.0.0.1:{ports[0]}", **delay
        ) as (first, stop),
        stoppable(
            directory / "two", deployer, gateway_health_listen=f"127.0.0.1:{ports[1]}", **delay
        ) as (second, _),
    ):
        await deployer.put(route("f", upstream.endpoint))
        gateways = itertools.cycle((first, second))
        ready = {first.port: True, second.port: True}

        def pick() -> Running:
            return next(g for g in gateways if ready[g.port])

        async def client(target: str) -> None:
            while not done.is_set():
                port = pick().port
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                try:
                    while not done.is_set():
                        writer.write(f"GET /f/f{target} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
                        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                        size = int(head.split("content-length:")[1].split("\r\n")[0])
                        await reader.readexactly(size)
                        statuses.append(int(head.split(" ")[1]))
                        if "connection: close" in head:
                            break
                except (ConnectionError, asyncio.IncompleteReadError) as error:
                    ended.append(f"{port}: {error!r}")
                finally:
                    writer.close()

        async def watch_readiness() -> None:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{ports[0]}") as channel:
                stub: Any = health_pb2_grpc.HealthStub(channel)
                request = health_pb2.HealthCheckRequest(service="readiness")
                async for answer in stub.Watch(request):
                    if answer.status != health_pb2.HealthCheckResponse.SERVING:
                        break
            # A Service notices a little later.
            asyncio.get_running_loop().call_later(0.3, ready.update, {first.port: False})

        load = [asyncio.create_task(client(target)) for target in ["/", "/slow"] * 8]
        await deployer.until(lambda: deployer.requests("f") > 200)
        watching = asyncio.create_task(watch_readiness())
        before = len(statuses)
        await stop()
        await watching
        at_the_end = len(statuses)
        await deployer.until(lambda: deployer.requests("f") > at_the_end + 200)
        done.set()
        await asyncio.gather(*load)
    assert ended == []
    assert set(statuses) == {200}
    assert at_the_end - before > 100


@pytest.mark.parametrize(
    ("proxies", "expected"),
    [(0, ("http", None)), (1, ("https", "shop.example"))],
)
async def test_proxies_before_the_gateway_are_believed_when_they_are_named(
    directory: Path, deployer: Deployer, proxies: int, expected: tuple[str, str | None]
) -> None:
    said = {
        "x-forwarded-for": "9.9.9.9",
        "x-forwarded-proto": "https",
        "x-forwarded-host": "shop.example",
    }
    async with (
        serve(directory / "f.sock") as upstream,
        running(directory, deployer, trusted_proxies=proxies) as gateway,
    ):
        await deployer.connected()
        await deployer.put(route("f", upstream.endpoint))
        seen = (await gateway.http.get("/f/f/", headers=said)).json()["headers"]
        assert (seen.get("x-forwarded-proto"), seen.get("x-forwarded-host")) == expected
        assert seen["x-forwarded-for"].startswith("9.9.9.9,")
