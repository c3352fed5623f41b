"""Clients that go away in the middle of a call: it is done whole or not at all."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from tests.conformance.door import ENDED, Door, Json, state_of, time_of

HELLO = "def handler(event, ctx):\n    return 'here'\n"
# From before the request has arrived until after it has been answered.
DELAYS = [n * 0.0007 for n in range(20)]


@pytest.fixture
def delays(on_cluster: bool) -> list[float]:
    """Seconds; fewer where each round takes a pod."""
    return DELAYS[::3] if on_cluster else DELAYS


async def send_and_leave(
    mayfly: Door, method: str, path: str, body: dict[str, Any] | None, delay: float
) -> None:
    """Send a request and close the connection after a while, answered or not."""
    content = json.dumps(body).encode() if body is not None else b""
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: {mayfly.target}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    _, writer = await asyncio.open_connection(mayfly.host, mayfly.port)
    writer.write(head.encode() + content)
    await writer.drain()
    await asyncio.sleep(delay)
    writer.transport.abort()


async def awake(mayfly: Door, count: int) -> list[Json]:
    """Make functions that do not sleep while the others are tried."""
    ready = (mayfly.ready(handler=HELLO, ttl="600s", minInstances=1) for _ in range(count))
    return await asyncio.gather(*ready)


async def test_a_deletion(mayfly: Door, delays: list[float]) -> None:
    made = await awake(mayfly, len(delays))
    for function, delay in zip(made, delays, strict=True):
        await send_and_leave(mayfly, "DELETE", f"/v1/{function['name']}", None, delay)
        # Whatever became of it: when this one returns, the function answers no more.
        await mayfly.delete(function)
        answer = await mayfly.call(function)
        assert answer.status_code == 404, (delay, answer.text)
    assert all(await asyncio.gather(*map(mayfly.verified_receipt, made)))


async def test_a_creation(mayfly: Door, delays: list[float]) -> None:
    for delay in delays:
        function_id = mayfly.new_id("left")
        path = f"/v1/functions?function_id={function_id}&request_id={function_id}"
        body = {"handler": HELLO, "ttl": "60s"}
        await send_and_leave(mayfly, "POST", path, body, delay)
        # The same wish again: made or not, it is one function, and it works.
        again = await mayfly.post(body, function_id=function_id, request_id=function_id)
        assert again.status_code == 200, again.text
        answer = await mayfly.call(function_id, timeout=30)
        assert answer.status_code == 200, (delay, answer.text)


async def test_a_renewal(mayfly: Door) -> None:
    delays = DELAYS[::3]
    taken: list[Json] = []
    for function, delay in zip(await awake(mayfly, len(delays)), delays, strict=True):
        path = f"/v1/{function['name']}:renew"
        await send_and_leave(mayfly, "POST", path, {"ttl": "1s"}, delay)
        found = await mayfly.get(function)
        if time_of(found["expireTime"]) < time_of(function["expireTime"]) - 100:
            # It was taken: then everybody knows of it, the gateway and the janitor too.
            await asyncio.sleep(max(0.0, time_of(found["expireTime"]) + 0.3 - time.time()))
            assert (await mayfly.call(function)).status_code == 404, delay
            taken.append(function)
    assert all(await asyncio.gather(*map(mayfly.verified_receipt, taken)))
    for function in taken:
        assert state_of(await mayfly.get(function)) in ENDED
