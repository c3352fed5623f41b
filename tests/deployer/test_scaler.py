"""Instances follow use: with a real deployer, its database and a gateway's stream."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio
from mayfly.v1.function_pb2 import Function, State
from mayfly.v1.route_pb2 import FunctionActivity

from libs.store import Store
from services.deployer import scaling
from services.deployer.app import HERE
from services.deployer.drivers.base import Endpoint
from services.deployer.effective import Defaults
from services.deployer.journal import Journal
from services.deployer.scaler import Scaler

from .conftest import Gateway, Running, Start, eventually
from .recording_driver import RecordingDriver
from .tiny_builder import TinyBuilder

IDLE_STOP = timedelta(seconds=0.2)
DEFAULTS = Defaults(
    ttl=timedelta(minutes=10), max_ttl=timedelta(hours=24), timeout=timedelta(seconds=60),
    memory_bytes=1 << 29, processes=64, open_files=1024, cpu_seconds=3600, concurrency=2,
    max_instances=4, start_timeout=timedelta(seconds=30), idle_stop=IDLE_STOP,
)  # fmt: skip


class ScalingDriver(RecordingDriver):
    """Keeps what it was told."""

    async def scale(self, uid: str, instances: int, keep: Sequence[str]) -> None:
        self.calls.append((f"scale {instances} {' '.join(keep)}".strip(), uid))


@dataclass
class World:
    """A deployer with a shared driver, a gateway, and a scaler that looks when it is told to."""

    running: Running
    driver: ScalingDriver
    gateway: Gateway
    scaler: Scaler
    meanwhile: Callable[[], Awaitable[Any]] | None = None

    async def use(self, function: Function, in_flight: int) -> None:
        """Report open requests, and wait until that is known."""
        name = function.name.removeprefix("functions/")
        before = len(self.driver.calls)
        activity = FunctionActivity(function_id=name, uid=function.uid, in_flight=in_flight)
        await self.gateway.report(activity)
        told = (f"touch {in_flight}", function.uid)
        await eventually(lambda: told in self.driver.calls[before:])

    def calls(self, what: str) -> list[str]:
        """What the driver was told of that kind."""
        return [call for call, _ in self.driver.calls if call.startswith(what)]


@pytest_asyncio.fixture
async def world(start: Start, builder: TinyBuilder, directory: Any) -> AsyncIterator[World]:
    driver = ScalingDriver(directory / "functions", reserves=False, shared=True)
    running = await start("one", driver)
    store = await Store.open(
        running.settings.database_url, "deployer", HERE / "queries.sql", min_size=1, max_size=4
    )
    journal = Journal(store, "scaler", lambda rows: None)
    writing = asyncio.create_task(journal.run())

    async def routes_taken() -> str:
        if made.meanwhile is not None:
            await made.meanwhile()
        return "all"

    scaler = Scaler(store, driver, journal, DEFAULTS, running.settings.target, routes_taken)
    made = World(running, driver, Gateway(running), scaler)
    yield made
    await made.gateway.leave()
    writing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await writing
    await store.close()


async def test_more_instances_for_more_requests(world: World) -> None:
    function = await world.running.ready("busy", concurrency=2, max_instances=4)
    await world.use(function, 3)
    await world.scaler.look()
    await eventually(lambda: world.calls("scale"))
    assert world.calls("scale")[0].startswith("scale 2")
    await world.use(function, 100)
    await world.scaler.look()
    await eventually(lambda: len(world.calls("scale")) == 2)
    assert world.calls("scale")[1].startswith("scale 4")
    await world.scaler.look()
    assert len(world.calls("scale")) == 2


async def test_what_nobody_uses_sleeps_once_it_is_off_the_routes(world: World) -> None:
    function = await world.running.ready("unused")
    await asyncio.sleep(IDLE_STOP.total_seconds())
    order: list[str] = []

    async def meanwhile() -> None:
        await world.gateway.until(lambda: world.gateway.routes["unused"].cold)
        order.extend(world.calls("sleep") or ["cold first"])

    world.meanwhile = meanwhile
    await world.scaler.look()
    await eventually(lambda: ("sleep", function.uid) in world.driver.calls)
    assert order == ["cold first"]
    assert (await world.running.get("unused")).state == State.STATE_IDLE


async def test_what_is_used_in_that_moment_stays_awake(world: World) -> None:
    function = await world.running.ready("late")
    await asyncio.sleep(IDLE_STOP.total_seconds())
    endpoint = world.gateway.routes["late"].endpoint
    world.meanwhile = lambda: world.use(function, 1)
    await world.scaler.look()

    async def is_back() -> bool:
        state = (await world.running.get("late")).state
        return state == State.STATE_READY and bool(world.gateway.routes["late"].endpoint)

    await eventually(lambda: world.gateway.routes["late"].cold)
    await eventually(is_back)
    assert world.gateway.routes["late"].endpoint == endpoint
    assert not world.calls("sleep")


async def test_an_open_stream_keeps_it_awake(world: World) -> None:
    function = await world.running.ready("stream")
    await world.use(function, 1)
    await asyncio.sleep(IDLE_STOP.total_seconds() * 2)
    await world.scaler.look()
    assert (await world.running.get("stream")).state == State.STATE_READY


async def test_a_minimum_is_kept(world: World) -> None:
    await world.running.ready("kept", min_instances=1)
    await asyncio.sleep(IDLE_STOP.total_seconds() * 2)
    await world.scaler.look()
    assert (await world.running.get("kept")).state == State.STATE_READY
    assert not world.calls("sleep")


async def test_fewer_instances_after_their_routes_are_gone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    function = await world.running.ready("less", concurrency=1, max_instances=4)
    three = [f"tcp:10.0.0.{number}:8000" for number in (1, 2, 3)]
    world.driver.move(function.uid, Endpoint(three[0], tuple(three[1:])))
    await world.gateway.until(lambda: list(world.gateway.routes["less"].endpoints) == three)
    await world.use(function, 2)
    monkeypatch.setattr(scaling, "DOWN_AFTER", 0.0)
    seen: list[list[str]] = []

    async def meanwhile() -> None:
        route = world.gateway.routes
        await world.gateway.until(lambda: list(route["less"].endpoints) == three[:2])
        seen.append(world.calls("scale"))

    world.meanwhile = meanwhile
    await world.scaler.look()
    await eventually(lambda: world.calls("scale"))
    assert world.calls("scale") == [f"scale 2 {three[0]} {three[1]}"]
    assert seen == [[]]
