"""What a deployer says right after its restart is true of the gateways that it has yet to meet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from tests.conformance.door import Door
from tests.faults.platforms import FourProcesses

HELLO = "def handler(event, ctx):\n    return 'here'\n"


@pytest_asyncio.fixture
async def platform(data_dir: Path) -> AsyncIterator[FourProcesses]:
    """Each service a process of its own."""
    four = FourProcesses(data_dir)
    try:
        await asyncio.to_thread(four.start)
        yield four
    finally:
        four.abandon()
        await asyncio.to_thread(four.looker.wait_empty, 15)


async def test_a_deletion_is_done_when_it_returns(platform: FourProcesses) -> None:
    door = Door(platform.url)
    try:
        for _ in range(4):
            function = await door.ready(handler=HELLO)
            assert (await door.call(function)).status_code == 200
            assert await asyncio.to_thread(platform.kill, "deployer")
            await asyncio.to_thread(platform.recover, "deployer")
            await door.delete(function)
            answer = await door.call(function)
            assert answer.status_code == 404, answer.text
    finally:
        await door.http.aclose()
