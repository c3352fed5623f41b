"""A gateway with the real Envoy, a deployer of the tests' own, and clients."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from services.gateway.app import serve
from services.gateway.config import Settings
from tests.gateway.deployer import Deployer


@dataclass
class Running:
    """A gateway that answers."""

    url: str
    port: int
    settings: Settings
    deployer: Deployer
    http: httpx.AsyncClient
    directory: Path


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory with a short path, for unix sockets."""
    path = Path(tempfile.mkdtemp(prefix="mf-gw-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@asynccontextmanager
async def running(directory: Path, deployer: Deployer, **settings: Any) -> AsyncIterator[Running]:
    """Run a gateway in this process for as long as the block lasts."""
    made = Settings(
        **{
            "listen": "127.0.0.1:0",
            "data_dir": directory,
            "deployer_address": deployer.address,
            "builder_address": deployer.address,
            "janitor_address": deployer.address,
            "gateway_name": "gw-test",
            "envoy_concurrency": 2,
            "log_level": "WARNING",
        }
        | settings
    )
    stop = asyncio.Event()
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(serve(made, stop, ready.set_result))
    try:
        await asyncio.wait([task, ready], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        url = ready.result().replace("localhost", "127.0.0.1")
        async with httpx.AsyncClient(base_url=url, timeout=20, trust_env=False) as http:
            yield Running(url, int(url.rsplit(":", 1)[1]), made, deployer, http, directory)
    finally:
        stop.set()
        await task


@pytest_asyncio.fixture
async def deployer(directory: Path) -> AsyncIterator[Deployer]:
    """A deployer that serves."""
    made = Deployer(f"unix:{directory}/deployer.sock")
    await made.start()
    yield made
    await made.stop()


@pytest_asyncio.fixture
async def gateway(directory: Path, deployer: Deployer) -> AsyncIterator[Running]:
    """A gateway that is connected."""
    async with running(directory, deployer) as made:
        await deployer.connected()
        yield made


@pytest_asyncio.fixture
async def short_hold(directory: Path, deployer: Deployer) -> AsyncIterator[Running]:
    """A gateway where requests wait for one second."""
    async with running(directory, deployer, hold_timeout=1) as made:
        await deployer.connected()
        yield made


async def eventually(check: Callable[[], Awaitable[bool]], seconds: float = 5.0) -> None:
    """Wait until `check` holds of something that cannot say so itself: a process, a proxy."""
    async with asyncio.timeout(seconds):
        while not await check():  # noqa: ASYNC110 - nothing to be notified by
            await asyncio.sleep(0.01)
