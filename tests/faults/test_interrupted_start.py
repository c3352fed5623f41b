"""A part is killed while a function starts: it is started again, and is none the worse for it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from tests.conformance.door import Door, Json, state_of, until
from tests.faults.platforms import OneProcess, find_child

HANDLER = "import time\ntime.sleep(2)\ndef handler(event, ctx):\n    return 'here'\n"
SCRIPT = (
    "# /// script\n# dependencies = []\n# ///\n"
    "import http.server, time\n"
    "time.sleep(2)\n"
    "class Server(http.server.BaseHTTPRequestHandler):\n"
    "    def do_GET(self):\n"
    "        self.send_response(200)\n        self.end_headers()\n"
    "        self.wfile.write(b'here')\n"
    "http.server.ThreadingHTTPServer(('0.0.0.0', 8000), Server).serve_forever()\n"
)


@pytest_asyncio.fixture
async def platform(data_dir: Path) -> AsyncIterator[OneProcess]:
    """A healthy platform in one process."""
    one = OneProcess(data_dir)
    try:
        await asyncio.to_thread(one.start)
        yield one
    finally:
        one.kill("standalone")
        await asyncio.to_thread(one.looker.wait_empty, 15)


@pytest_asyncio.fixture
async def door(platform: OneProcess) -> AsyncIterator[Door]:
    """The platform's door."""
    opened = Door(platform.url)
    yield opened
    await opened.http.aclose()


@pytest.mark.parametrize("victim", ["zygote", "supervisor", "postgres", "envoy", "standalone"])
async def test_killed_while_a_function_starts(
    platform: OneProcess, door: Door, victim: str
) -> None:
    made = [await door.create(handler=HANDLER), await door.create(script=SCRIPT)]
    platform.looker.uids.update(function["uid"] for function in made)

    async def deploying() -> bool:
        return {state_of(await door.get(f)) for f in made} == {"DEPLOYING"}

    await until(deploying, 10, what="both are being deployed")
    assert await asyncio.to_thread(platform.kill, victim)
    await asyncio.to_thread(platform.recover, victim)
    for function in made:
        assert await settled(door, function) in {"READY", "IDLE"}, await door.get(function)
        answer = await door.call(function)
        assert (answer.status_code, answer.text.strip('"')) == (200, "here")


@pytest.mark.parametrize("victim", ["zygote", "supervisor"])
async def test_killed_at_any_moment_of_a_quick_start(
    platform: OneProcess, door: Door, victim: str
) -> None:
    """From before the socket is there until after the function is ready, 1 ms apart."""
    quick = "def handler(event, ctx):\n    return 'here'\n"
    made: list[tuple[int, Json]] = []

    warm = await door.ready(handler=quick)

    async def running() -> int | None:
        # A zygote is there again when it is needed.
        await door.call(warm)
        return await asyncio.to_thread(find_child, platform.looker, victim)

    for delay in range(0, 40, 1):
        # Looked for beforehand, because looking takes longer than the start.
        pid = await until(running, 10, what=f"a {victim}")
        function = await door.create(handler=f"{quick}# {delay}\n")
        platform.looker.uids.add(function["uid"])
        made.append((delay, function))
        await asyncio.sleep(delay / 1000)
        os.kill(pid, signal.SIGKILL)
        answer = await door.call(function, timeout=20)
        if answer.status_code != 200:  # its instance died while it answered
            assert answer.status_code in {502, 503}, (delay, answer.text)
            answer = await door.call(function, timeout=20)
        assert (answer.status_code, answer.text.strip('"')) == (200, "here"), delay
    for delay, function in made:
        assert (await door.call(function, timeout=20)).status_code == 200, delay


async def settled(door: Door, function: Json) -> str:
    """Wait until a function is neither built nor started any more; returns its state."""

    async def probe() -> str | None:
        try:
            state = state_of(await door.get(function))
        except (httpx.TransportError, AssertionError):
            return None
        return None if state in {"PENDING", "BUILDING", "DEPLOYING"} else state

    return await until(probe, 40, what="the end of the start", every=0.1)
