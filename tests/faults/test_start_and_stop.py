"""Starts that cannot succeed say why; stops leave nothing, whatever was under way."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from tests.conformance.door import Door, time_of
from tests.conformance.standalone import Standalone
from tests.faults.platforms import new_looker
from tests.faults.world import Looker

HELLO = "def handler(event, ctx):\n    return 'here'\n"
CRYPTIC = ("Traceback", "asyncpg", "grpc.")


class Watched:
    """A platform and what looks for its residue."""

    def __init__(self, data_dir: Path, port: int | None = None, **env: str) -> None:
        self.looker: Looker = new_looker(data_dir)
        name, _, value = self.looker.mark.partition("=")
        self.mayfly = Standalone(data_dir, port=port, env={name: value, **env})

    def refused(self, seconds: float = 30) -> tuple[int, str]:
        """Launch it, expect it to end by itself, and return the exit code and what it said."""
        self.mayfly.launch()
        try:
            code = self.mayfly.wait(seconds)
        except subprocess.TimeoutExpired:
            self.mayfly.stop()
            raise
        self.looker.wait_empty()
        return code, self.mayfly.log_tail()


@pytest_asyncio.fixture
async def watched(data_dir: Path) -> AsyncIterator[Watched]:
    """A healthy platform; what is left of it afterwards is killed, and is a failure."""
    one = Watched(data_dir)
    try:
        await asyncio.to_thread(one.mayfly.start)
        yield one
    finally:
        if one.mayfly.running:
            one.mayfly.signal(signal.SIGKILL)
            one.mayfly.wait(10)
        await asyncio.to_thread(one.looker.wait_empty)


def test_a_port_that_is_taken_is_named(data_dir: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        one = Watched(data_dir, port=taken.getsockname()[1])
        code, said = one.refused(60)
    assert code not in (0, None)
    assert str(one.mayfly.port) in said, said
    assert "MAYFLY_LISTEN" in said, said
    assert not any(word in said for word in CRYPTIC), said


async def test_a_data_directory_in_use_is_named(watched: Watched) -> None:
    second = Watched(watched.mayfly.data_dir)
    # The first one's processes have the directory in their commands too.
    second.looker.ignored = {p.pid for p in watched.looker.look().processes}
    second.mayfly.launch()
    code = await asyncio.to_thread(second.mayfly.wait, 30)
    said = second.mayfly.log_tail()
    assert code not in (0, None)
    assert "in use" in said, said
    assert str(watched.mayfly.pid) in said, said
    door = Door(watched.mayfly.url)
    function = await door.create(handler=HELLO)
    assert (await door.call(function)).status_code == 200
    await door.close()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAYFLY_LISTEN", "nowhere"),
        ("MAYFLY_LISTEN", "127.0.0.1:70000"),
        ("MAYFLY_MAX_TTL", "soon"),
        ("MAYFLY_MAX_FUNCTIONS", "-1"),
        ("MAYFLY_PUBLIC_URL", "localhost"),
        ("MAYFLY_NO_SUCH_SETTING", "1"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(data_dir: Path, name: str, value: str) -> None:
    code, said = Watched(data_dir, **{name: value}).refused()
    assert code == 2, said
    assert name in said, said
    assert not any(word in said for word in CRYPTIC), said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_stop_leaves_no_process(watched: Watched, number: signal.Signals) -> None:
    door = Door(watched.mayfly.url)
    made = [await door.ready(handler=HELLO, minInstances=1) for _ in range(3)]
    assert (await door.call(made[0])).status_code == 200
    await door.http.aclose()
    assert watched.looker.look().processes
    watched.mayfly.signal(number)
    assert await asyncio.to_thread(watched.mayfly.wait, 30) == 0, watched.mayfly.log_tail()
    await asyncio.to_thread(watched.looker.wait_empty, 5)


async def test_ctrl_c_during_a_build_is_a_clean_stop(watched: Watched) -> None:
    door = Door(watched.mayfly.url)
    slow = '# /// script\n# dependencies = ["fastapi", "uvicorn"]\n# ///\n'
    function = await door.create(script=slow + "print('never reached')\n")
    async for event in door.events(function):
        if event.get("state", {}).get("state") == "STATE_BUILDING":
            break
    await door.http.aclose()
    # A terminal sends Ctrl-C to the whole group in the foreground, children included.
    os.killpg(watched.mayfly.pid, signal.SIGINT)
    assert await asyncio.to_thread(watched.mayfly.wait, 30) == 0, watched.mayfly.log_tail()
    await asyncio.to_thread(watched.looker.wait_empty, 5)
    assert "Traceback" not in watched.mayfly.log_tail(200)


async def test_functions_are_there_again_after_a_stop_and_a_start(watched: Watched) -> None:
    door = Door(watched.mayfly.url)
    function = await door.ready(handler=HELLO, ttl="600s")
    short = await door.ready(handler=HELLO, ttl="3s")
    await door.http.aclose()
    assert await asyncio.to_thread(watched.mayfly.stop) == 0
    await asyncio.to_thread(watched.looker.wait_empty, 5)
    await asyncio.sleep(max(0.0, time_of(short["expireTime"]) + 0.1 - time.time()))
    await asyncio.to_thread(watched.mayfly.start)
    door = Door(watched.mayfly.url)
    again = await door.get(function)
    assert (again["uid"], again["expireTime"]) == (function["uid"], function["expireTime"])
    assert (await door.call(function)).text.strip('"') == "here"
    assert (await door.call(short)).status_code == 404
    assert (await door.receipt(short))["verified"]
    await door.delete(function)
    await door.http.aclose()


async def test_what_has_ended_is_refused_while_everything_but_envoy_stands_still(
    watched: Watched,
) -> None:
    """Envoy drops the route by itself. The rest is stopped dead (SIGSTOP), all four services."""
    door = Door(watched.mayfly.url)
    function = await door.ready(handler=HELLO, ttl="3s")
    assert (await door.call(function)).status_code == 200
    expire = time_of(function["expireTime"])
    answered: list[float] = []
    watched.mayfly.signal(signal.SIGSTOP)
    try:
        while time.time() < expire + 1.5:
            sent = time.time()
            # Held by a control process that stands still: no answer is no answer either.
            with contextlib.suppress(httpx.TimeoutException):
                answer = await door.call(function, timeout=0.3)
                if answer.status_code == 200:
                    answered.append(sent)
            await asyncio.sleep(0.02)
    finally:
        watched.mayfly.signal(signal.SIGCONT)
    assert answered
    assert expire - 0.5 < answered[-1] < expire + 0.25
    await asyncio.to_thread(watched.mayfly.wait_healthy, 30)
    assert (await door.receipt(function))["verified"]
    await door.http.aclose()
