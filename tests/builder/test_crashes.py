"""Workers that go: asked to, or killed. Somebody else finishes, and nothing is left."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from mayfly.v1.build_pb2 import Build, WatchBuildRequest
from mayfly.v1.build_pb2_grpc import BuildServiceStub
from mayfly.v1.reclaimer_pb2_grpc import ReclaimerServiceStub

from libs.rpc.channel import connect
from services.builder.config import Settings
from tests.builder.conftest import Replica, handler_with, running, until
from tests.builder.index import Index
from tests.builder.test_reclaimer import resources

ROOT = Path(__file__).parents[2]


@asynccontextmanager
async def process_of(
    settings: Settings,
) -> AsyncIterator[tuple[Replica, asyncio.subprocess.Process]]:
    """Run a replica in a process of its own."""
    address = f"unix:{settings.data_dir}/{settings.replica_name}.sock"
    environ = {
        **os.environ,
        "MAYFLY_DATABASE_URL": settings.database_url,
        "MAYFLY_DATA_DIR": str(settings.data_dir),
        "MAYFLY_BUILDER_LISTEN": address,
        "MAYFLY_DEPLOYER_ADDRESS": "",
        "MAYFLY_REPLICA": settings.replica_name,
        "MAYFLY_BUILD_CLAIM": f"{settings.build_claim.total_seconds()}",
        "MAYFLY_LOG_LEVEL": "ERROR",
        "MAYFLY_PYTHON_DOWNLOADS": "false",
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.builder"), env=environ, cwd=ROOT
    )
    channel = connect(address)
    try:
        await asyncio.wait_for(until(Path(address.removeprefix("unix:")).exists), 30)
        stubs = BuildServiceStub(channel), ReclaimerServiceStub(channel)
        yield Replica(settings, *stubs, address), process
    finally:
        await channel.close()
        if process.returncode is None:
            process.kill()
        await process.wait()


async def ended(replica: Replica, name: str) -> Build:
    """Wait for a build's end."""
    stream = replica.builds.WatchBuild(WatchBuildRequest(name=name))
    events = [event async for event in stream]
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    return events[-1].ended


async def test_a_killed_workers_build_is_finished_by_another(
    index: Index, settings: Callable[..., Settings]
) -> None:
    index.add("alpha")
    index.hold()
    async with process_of(settings(build_claim=2)) as (first, process):
        build = await first.create(handler=handler_with("alpha"), uid="a", wait=0)
        await until(index.held.is_set)
        async with running(settings(build_claim=2)) as second:
            assert second.programs()
            process.send_signal(signal.SIGKILL)
            await process.wait()
            # uv dies with its worker.
            await until(lambda: not any("pip" in line for line in second.programs()))
            index.open.set()
            result = await ended(second, build.name)
            assert result.state == Build.STATE_SUCCEEDED, result.failure
            assert Path(result.artefact.environment, "mayfly.json").exists()
            # What the killed one was making is found, and belongs to nothing.
            orphans, _ = await resources(second, orphans_only=True)
            assert {resource.type for resource in orphans} == {"workspace"}
            assert len(second.files("environments")) == 1


async def test_a_worker_that_comes_back_goes_on_at_once(
    index: Index, settings: Callable[..., Settings]
) -> None:
    index.add("alpha")
    index.hold()
    mine = settings(build_claim=600)
    async with process_of(mine) as (first, process):
        build = await first.create(handler=handler_with("alpha"), uid="a", wait=0)
        await until(index.held.is_set)
        process.kill()
        await process.wait()
    index.open.set()
    async with running(mine) as again:
        result = await asyncio.wait_for(ended(again, build.name), 20)
        assert result.state == Build.STATE_SUCCEEDED, result.failure


async def test_a_worker_that_stops_gives_its_build_back(
    index: Index, settings: Callable[..., Settings]
) -> None:
    index.add("alpha")
    index.hold()
    async with running(settings(build_claim=600)) as first:
        build = await first.create(handler=handler_with("alpha"), uid="a", wait=0)
        await until(index.held.is_set)
    assert first.programs() == []
    assert first.files("temporary") == []
    index.open.set()
    async with running(settings(build_claim=600)) as second:
        result = await asyncio.wait_for(ended(second, build.name), 20)
        assert result.state == Build.STATE_SUCCEEDED, result.failure


async def test_a_full_replica_queues_for_others(
    index: Index, settings: Callable[..., Settings]
) -> None:
    index.add("alpha")
    index.hold()
    async with running(settings(concurrent_builds=1)) as full, running(settings()) as other:
        await full.create(handler=handler_with("alpha"), uid="a", wait=0)
        queued = await full.create(handler="def handler(e, c): pass\n", uid="b", wait=20)
        assert queued.state == Build.STATE_SUCCEEDED
        index.open.set()
        assert other.files("artefacts")


async def test_a_build_that_keeps_killing_its_worker_fails(
    index: Index, settings: Callable[..., Settings]
) -> None:
    index.add("alpha")
    index.hold()
    name = ""
    for _ in range(3):
        index.held.clear()
        async with process_of(settings(replica="doomed")) as (replica, process):
            if not name:
                build = await replica.create(handler=handler_with("alpha"), uid="a", wait=0)
                name = build.name
            await until(index.held.is_set)
            process.kill()
            await process.wait()
    async with running(settings(replica="doomed")) as last:
        result = await asyncio.wait_for(ended(last, name), 20)
        assert (result.state, result.failure.reason) == (Build.STATE_FAILED, "INTERNAL")
        assert "3 times" in result.failure.message
