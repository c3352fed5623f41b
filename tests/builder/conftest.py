"""A builder replica over real gRPC, on a database and a data directory of the test's own."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from mayfly.v1.build_pb2 import Build, CreateBuildRequest
from mayfly.v1.build_pb2_grpc import BuildServiceStub
from mayfly.v1.reclaimer_pb2_grpc import ReclaimerServiceStub
from mayfly.v1.source_pb2 import Source

from libs.rpc.channel import connect
from services.builder.app import serve
from services.builder.backends.local import processes
from services.builder.config import Settings
from services.builder.directories import Directories
from tests.builder.index import Index, serving

HANDLER = "def handler(event, ctx):\n    return 1\n"


@dataclass
class Replica:
    """A running builder and stubs of it."""

    settings: Settings
    builds: Any
    reclaimer: Any
    address: str

    async def create(
        self,
        *,
        runtime: str = "",
        uid: str = "",
        lasts: float = 600,
        wait: float = 30,
        **source: Any,
    ) -> Build:
        """Create a build of one kind of source, held for function `uid` if one is given."""
        request = CreateBuildRequest(runtime=runtime, source=Source(**source))
        request.wait.CopyFrom(Duration(nanos=int(wait * 1e9) % 10**9, seconds=int(wait)))
        if uid:
            request.function = f"functions/{uid}"
            request.function_uid = uid
            request.expire_time.CopyFrom(in_seconds(lasts))
        return (await self.builds.CreateBuild(request)).build

    def programs(self) -> list[str]:
        """Command lines of the programs that builds have started and that still run."""
        directories = Directories(self.settings.data_dir / "builds")
        return [thing.detail for thing in processes(directories)[0]]

    def files(self, *path: str) -> list[Path]:
        """What is in a directory below builds/."""
        return sorted(self.settings.data_dir.joinpath("builds", *path).iterdir())


def in_seconds(seconds: float) -> Timestamp:
    """Return the time in so many seconds."""
    time = Timestamp()
    time.FromDatetime(datetime.now(UTC) + timedelta(seconds=seconds))
    return time


Start = Callable[..., Any]


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Replica]:
    """Run a replica in this process."""
    stop, address = asyncio.Event(), asyncio.get_running_loop().create_future()
    task = asyncio.create_task(serve(settings, stop, address.set_result))
    await asyncio.wait([task, address], return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    channel = connect(await address)
    try:
        stubs = BuildServiceStub(channel), ReclaimerServiceStub(channel)
        yield Replica(settings, *stubs, await address)
    finally:
        await channel.close()
        stop.set()
        await task


@pytest.fixture
def data_dir(reachable_tmp: Path) -> Iterator[Path]:
    """A data directory of the test's own, removed afterwards."""
    path = reachable_tmp / f"builder-{secrets.token_hex(4)}"
    path.mkdir(mode=0o711)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def settings(database_url: str, data_dir: Path) -> Callable[..., Settings]:
    """Make settings of a replica that shares this test's database and directory."""

    def make(**given: Any) -> Settings:
        defaults: dict[str, Any] = {
            "database_url": database_url,
            "data_dir": data_dir,
            "builder_listen": "127.0.0.1:0",
            "deployer_address": "",
            "log_level": "ERROR",
            "replica": secrets.token_hex(4),
            "python_downloads": False,
        }
        return Settings(**(defaults | given))

    return make


@pytest_asyncio.fixture
async def replica(settings: Callable[..., Settings]) -> AsyncIterator[Replica]:
    """One replica with default settings."""
    async with running(settings()) as one:
        yield one


def details(error: grpc.aio.AioRpcError) -> str:
    """What a failed call says."""
    return error.details() or ""


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """The only package index that builders of this test know."""
    for name in [each for each in os.environ if each.startswith(("UV_", "PIP_"))]:
        monkeypatch.delenv(name)
    with serving() as one:
        monkeypatch.setenv("UV_DEFAULT_INDEX", one.url)
        monkeypatch.setenv("UV_HTTP_RETRIES", "0")
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, "127.0.0.1")
        yield one


def handler_with(*requirements: str, more: str = "") -> str:
    """Return a handler that needs these."""
    listed = ", ".join(f'"{each}"' for each in requirements)
    return f"# /// script\n# dependencies = [{listed}]\n# ///\n{HANDLER}{more}"


async def until(condition: Callable[[], Any], seconds: float = 20) -> Any:
    """Return what `condition` (a coroutine function, or not) says, once it is true."""
    async with asyncio.timeout(seconds):
        while True:
            said = condition()
            if asyncio.iscoroutine(said):
                said = await said
            if said:
                return said
            await asyncio.sleep(0.02)
