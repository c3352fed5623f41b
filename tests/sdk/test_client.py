"""Both clients against a platform over real gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import mayfly
import pytest
from mayfly import AsyncClient, Client, Event, Source
from mayfly.resources import LogLine, StageChange
from mayfly.v1 import function_pb2

from tests.sdk.conftest import Running
from tests.sdk.platform import FUNCTIONS, FakePlatform, server

HANDLER = "def handler(event, ctx):\n    return 1\n"


@pytest.fixture
async def client(running: Running) -> AsyncIterator[AsyncClient]:
    """An asynchronous client of it."""
    async with AsyncClient(running.url) as made:
        yield made


async def test_deploys_and_tells_of_events(client: AsyncClient, running: Running) -> None:
    seen: list[Event] = []
    function = await client.deploy(HANDLER, name="a", ttl="10m", on_event=seen.append)
    assert (function.id, function.state, function.ended) == ("a", "READY", False)
    assert 590 < function.left().total_seconds() <= 600
    assert [event.sequence for event in seen] == list(range(1, 9))
    assert isinstance(seen[0].kind, StageChange)
    assert isinstance(seen[3].kind, LogLine)
    assert (await client.get("functions/a")).uid == function.uid

    told: list[int] = []

    async def later(event: Event) -> None:
        await asyncio.sleep(0)
        told.append(event.sequence)

    await client.deploy(Source.handler(HANDLER), name="b", on_event=later)
    assert told == list(range(1, 9))


async def test_typed_errors(client: AsyncClient) -> None:
    with pytest.raises(mayfly.FunctionFailed) as failed:
        await client.deploy("# broken\n" + HANDLER, name="bad")
    error = failed.value
    assert (error.function, error.stage, error.reason) == ("bad", "build", "SOURCE_SYNTAX")
    assert (error.line, error.column, error.source_line) == (3, 12, "    return (1 + 2")
    assert error.fix.startswith("close")
    with pytest.raises(mayfly.AlreadyExists):
        await client.deploy(HANDLER, name="bad")
    with pytest.raises(mayfly.NotFound) as missing:
        await client.get("nope")
    assert missing.value.fix == "see mayfly list"
    with pytest.raises(mayfly.InvalidRequest) as invalid:
        await client.deploy(HANDLER, name="x", ttl="48h")
    assert (invalid.value.reason, invalid.value.field) == ("INVALID_TTL", "function.ttl")
    with pytest.raises(mayfly.InvalidRequest, match="no duration"):
        await client.renew("bad", "soon")
    await client.delete("bad")
    with pytest.raises(mayfly.FunctionEnded):
        await client.renew("bad", "1m")
    with pytest.raises(mayfly.NotFound):
        async for _ in client.watch("nope"):
            pass


async def test_lists_page_by_page(client: AsyncClient, running: Running) -> None:
    for n in range(5):
        await client.deploy(HANDLER, name=f"f{n}", wait=False)
    assert [f.id async for f in client.list()] == [f"f{n}" for n in range(5)]
    assert sum(hasattr(r, "page_token") for r in running.platform.requests) == 3


@pytest.mark.parametrize("how", ["break_streams", "unavailable_reports"])
async def test_a_watch_goes_on_after_breaks(
    client: AsyncClient, running: Running, how: str
) -> None:
    await client.deploy(HANDLER, name="a", wait=False)
    setattr(running.platform, how, 3)
    assert [event.sequence async for event in client.watch("a")] == list(range(1, 9))


async def test_a_watch_outlives_a_restart_of_the_platform(tmp_path: Path) -> None:
    platform = FakePlatform()
    serving = server(platform, f"unix:{tmp_path}/s")
    address = await serving.start()
    await serving.health.set(FUNCTIONS, True)
    async with AsyncClient(address) as client:
        await client.deploy(HANDLER, name="a", wait=False)
        platform.settles.clear()
        events = client.watch("a")
        first = [(await anext(events)).sequence for _ in range(8)]
        waiting = asyncio.ensure_future(anext(events, None))
        await asyncio.sleep(0)
        await serving.stop(0)
        platform.events["functions/a"].append(function_pb2.FunctionEvent(sequence=9))
        serving = server(platform, address)
        await serving.start()
        ninth = await asyncio.wait_for(waiting, 20)
        assert first == list(range(1, 9))
        assert ninth is not None
        assert ninth.sequence == 9
        platform.settles.set()
        assert [event async for event in events] == []
    await serving.stop(0)


async def test_nobody_there(tmp_path: Path) -> None:
    async with AsyncClient(f"unix:{tmp_path}/none", timeout=5) as client:
        with pytest.raises(mayfly.Unavailable, match="cannot reach Mayfly") as caught:
            await client.get("a")
        assert "--url" in caught.value.fix
        with pytest.raises(mayfly.Unavailable):
            async for _ in client.watch("a", patience=0.2):
                pass


async def test_the_rest(client: AsyncClient) -> None:
    await client.deploy(HANDLER, name="a")
    lines = [line.text async for line in client.logs("a", tail=3)]
    assert lines[-1] == "hello from the function"
    assert [span.name for span in (await client.trace("a")).spans][:2] == ["function", "build"]
    assert [r.name for r in await client.runtimes()] == ["go", "python"]
    assert (await client.janitor_status()).deadlines == 3
    answers = [answer async for answer in client.sweep()]
    assert isinstance(answers[-1], mayfly.SweepSummary)
    assert [r async for r in client.receipts()] == []
    with pytest.raises(mayfly.NotFound):
        await client.receipt("a")
    assert (await client.delete("a")).end_reason == "deleted"


async def test_the_blocking_client_does_the_same(running: Running, tmp_path: Path) -> None:
    path = tmp_path / "hello.py"
    path.write_text(HANDLER)

    def use() -> None:
        running.platform.break_streams = 2
        with Client(running.url) as client:
            seen: list[int] = []
            function = client.deploy(path, on_event=lambda event: seen.append(event.sequence))
            assert function.id == "hello"
            assert seen == list(range(1, 9))
            assert [f.id for f in client.list()] == ["hello"]
            assert client.deploy(path, update=True).revision == 2
            assert client.renew("hello", 60).left().total_seconds() <= 60
            running.platform.break_streams = 1
            with pytest.raises(mayfly.Unavailable):
                list(client.logs("hello"))
            running.platform.break_streams = 1
            assert len(list(client.logs("hello", follow=True))) == 2
            assert client.trace("hello").trace_id
            assert len(list(client.sweep())) == 1
            assert list(client.receipts()) == []
            assert client.runtimes()[1].available
            assert client.janitor_status().owners == ("deployer", "builder")
            with pytest.raises(mayfly.FunctionFailed):
                client.deploy("# broken\n" + HANDLER, name="bad")
            with pytest.raises(mayfly.NotFound):
                client.receipt("hello")
            assert client.delete("hello").ended

    await asyncio.to_thread(use)


def test_the_package_offers_what_it_names() -> None:
    for name in mayfly.__all__:
        assert getattr(mayfly, name).__name__ == name
    with pytest.raises(AttributeError):
        _ = mayfly.Nothing
