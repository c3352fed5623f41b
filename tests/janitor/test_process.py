"""The janitor as a process of its own: stopped, killed, and with a database that dies."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from mayfly.v1 import janitor_pb2, janitor_pb2_grpc

from libs.rpc.channel import connect
from services.standalone.postgres import EmbeddedPostgres
from tests.janitor.conftest import Eventually, Run
from tests.janitor.owner import TestOwner


class Janitor:
    """One process."""

    def __init__(self, process: asyncio.subprocess.Process, address: str) -> None:
        self.process = process
        self.channel = connect(address)
        self.stub: Any = janitor_pb2_grpc.JanitorServiceStub(self.channel)

    async def serving(self) -> bool:
        stub: Any = health_pb2_grpc.HealthStub(self.channel)
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True)
        except grpc.aio.AioRpcError:
            return False
        return answer.status == health_pb2.HealthCheckResponse.SERVING

    async def verified(self, function: str) -> bool:
        request = janitor_pb2.GetReceiptRequest(name=f"receipts/{function}")
        return (await self.stub.GetReceipt(request)).receipt.verified

    async def end(self, number: int) -> int:
        await self.channel.close()
        self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), 20)


@pytest.fixture
async def start(tmp_path: Path, deployer: TestOwner, builder: TestOwner, eventually: Eventually):
    """Start `python -m services.janitor`; what still runs at the end is killed."""
    started: list[Janitor] = []

    async def run(database_url: str) -> Janitor:
        address = f"unix:{tmp_path}/janitor.sock"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.janitor"),
            env={
                **os.environ,
                "MAYFLY_DATABASE_URL": database_url,
                "MAYFLY_JANITOR_LISTEN": address,
                "MAYFLY_DEPLOYER_ADDRESS": deployer.address,
                "MAYFLY_BUILDER_ADDRESS": builder.address,
                "MAYFLY_LOG_LEVEL": "ERROR",
            },
        )
        janitor = Janitor(process, address)
        started.append(janitor)
        await eventually(janitor.serving)
        return janitor

    yield run
    for janitor in started:
        if janitor.process.returncode is None:
            await janitor.end(signal.SIGKILL)


async def test_stops_when_it_is_told(start: Any, database_url: str) -> None:
    janitor = await start(database_url)
    assert await janitor.end(signal.SIGTERM) == 0


async def test_killed_between_removal_and_receipt(
    start: Any,
    database_url: str,
    deployer: TestOwner,
    builder: TestOwner,
    eventually: Eventually,
) -> None:
    deployer.shares = builder.shares = False
    deployer.hold_reclaim = asyncio.Event()
    janitor = await start(database_url)
    deployer.put("functions/a", "u1", 0.05)
    deployer.put("functions/b", "u2", 600)

    async def removed() -> bool:
        return "u1" in deployer.reclaimed_at

    await eventually(removed)
    await janitor.end(signal.SIGKILL)
    deployer.hold_reclaim.set()
    again = await start(database_url)
    await eventually(lambda: again.verified("a"))
    assert (await again.stub.GetStatus(janitor_pb2.GetStatusRequest())).deadlines == 1
    assert await again.end(signal.SIGTERM) == 0


async def test_a_database_that_dies_costs_no_receipt(
    run_janitor: Run, reachable_tmp: Path, deployer: TestOwner, eventually: Eventually
) -> None:
    server = EmbeddedPostgres(reachable_tmp / "janitor")
    await server.start()
    try:
        async with run_janitor(database_url=server.dsn) as stub:

            async def connected() -> bool:
                status = await stub.GetStatus(janitor_pb2.GetStatusRequest())
                return len(status.owners) == 2

            await eventually(connected)
            assert server._child is not None
            os.kill(server._child.pid, signal.SIGKILL)
            deployer.put("functions/a", "u1", 0.05)

            async def verified() -> bool:
                request = janitor_pb2.GetReceiptRequest(name="receipts/a")
                try:
                    return (await stub.GetReceipt(request)).receipt.verified
                except grpc.aio.AioRpcError as error:
                    if error.code() is grpc.StatusCode.UNAVAILABLE:
                        return False
                    raise

            await eventually(verified)
    finally:
        await server.stop()
