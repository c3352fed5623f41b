"""A real owner over real gRPC whose world is a dictionary, and janitors against it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from mayfly.v1 import janitor_pb2_grpc

from libs.rpc.channel import connect
from services.janitor.app import serve
from services.janitor.config import Settings
from tests.janitor.owner import TestOwner

Stub = Any
Run = Callable[..., AbstractAsyncContextManager[Stub]]
Eventually = Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]


@pytest.fixture
async def deployer(tmp_path: Path) -> AsyncIterator[TestOwner]:
    """An owner of functions, serving."""
    owner = TestOwner(f"unix:{tmp_path}/deployer.sock")
    await owner.start()
    yield owner
    await owner.stop()


@pytest.fixture
async def builder(tmp_path: Path) -> AsyncIterator[TestOwner]:
    """An owner of builds, serving."""
    owner = TestOwner(f"unix:{tmp_path}/builder.sock")
    await owner.start()
    yield owner
    await owner.stop()


@pytest.fixture
def run_janitor(database_url: str, tmp_path: Path, deployer: TestOwner, builder: TestOwner) -> Run:
    """Run a janitor for a while; yields a stub of it."""
    count = 0

    @asynccontextmanager
    async def run(**changes: Any) -> AsyncIterator[Stub]:
        nonlocal count
        count += 1
        given = {
            "database_url": database_url,
            "janitor_listen": f"unix:{tmp_path}/janitor{count}.sock",
            "deployer_address": deployer.address,
            "builder_address": builder.address,
            "sweep_interval": "0s",
        }
        settings = Settings(**(given | changes))
        stop = asyncio.Event()
        address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        serving = asyncio.create_task(serve(settings, stop, address.set_result))
        await asyncio.wait([serving, address], return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            await serving
        channel: grpc.aio.Channel = connect(await address)
        try:
            yield janitor_pb2_grpc.JanitorServiceStub(channel)
        finally:
            await channel.close()
            stop.set()
            await asyncio.wait_for(serving, 15)

    return run


@pytest.fixture
def eventually() -> Eventually:
    """Call until it neither raises NOT_FOUND nor returns something false; at most 10 s."""

    async def wait(call: Callable[[], Awaitable[Any]]) -> Any:
        async with asyncio.timeout(10):
            while True:
                try:
                    if answer := await call():
                        return answer
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.NOT_FOUND:
                        raise
                await asyncio.sleep(0.005)

    return wait
