"""From CreateFunction to an answer to nothing."""

from __future__ import annotations

import asyncio

from mayfly.v1.function_pb2 import State

from .conftest import Gateway, Running


async def ask(endpoint: str) -> bytes:
    """Send a request to an endpoint as the gateway does; return the response."""
    if endpoint.startswith("unix:"):
        reader, writer = await asyncio.open_unix_connection(endpoint.removeprefix("unix:"))
    else:
        host, _, port = endpoint.removeprefix("tcp:").rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    response = await reader.read()
    writer.close()
    await writer.wait_closed()
    return response


async def test_created_ready_reclaimed(deployer: Running) -> None:
    gateway = Gateway(deployer)
    await gateway.until(lambda: gateway.complete)
    created = await deployer.create("hello", ttl=60)
    assert created.state == State.STATE_PENDING
    assert created.url == "http://localhost:8080/f/hello"
    events = await deployer.settle("hello")
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    states = [e.state.state for e in events if e.WhichOneof("kind") == "state"]
    assert states == [
        State.STATE_PENDING, State.STATE_BUILDING, State.STATE_DEPLOYING, State.STATE_READY
    ]  # fmt: skip
    route = gateway.routes["hello"]
    assert (await ask(route.endpoint)).endswith(b"return 1\n")

    deleted = await deployer.delete("hello")
    assert deleted.state == State.STATE_EXPIRED
    assert "hello" not in gateway.routes
    (outcome,) = await deployer.reclaim(deleted)
    assert outcome.result == outcome.RESULT_RECLAIMED
    assert {r.type for r in outcome.removed} >= {"socket", "route", "artefact"}
    assert not list(deployer.driver.directory.iterdir())
    assert (await deployer.get("hello")).state == State.STATE_RECLAIMED
    await gateway.leave()
