"""Drivers of a cluster: no sockets before the deploy, one world for all replicas."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration
from mayfly.v1 import reclaimer_pb2, route_pb2
from mayfly.v1.function_pb2 import State
from mayfly.v1.source_pb2 import Stage

from libs.store import Store
from services.deployer.app import SCHEMA
from services.deployer.drivers.base import Endpoint

from .conftest import Gateway, Running, Start, eventually
from .recording_driver import RecordingDriver
from .tiny_builder import TinyBuilder


@pytest.fixture
def world(directory: Path) -> RecordingDriver:
    """A driver as that of a cluster is."""
    return RecordingDriver(directory / "functions", reserves=False, shared=True)


async def activate(deployer: Running, function_id: str, seconds: int = 5) -> route_pb2.Route:
    request = route_pb2.ActivateFunctionRequest(
        function_id=function_id, wait=Duration(seconds=seconds)
    )
    return (await deployer.routes.ActivateFunction(request)).route


async def test_the_address_comes_with_the_deploy(
    start: Start, builder: TinyBuilder, world: RecordingDriver
) -> None:
    deployer = await start(driver=world)
    world.gate = asyncio.Event()
    gateway = Gateway(deployer)
    await gateway.until(lambda: gateway.complete)
    function = await deployer.create("hello")
    await eventually(lambda: ("deploy", function.uid) in world.calls)
    assert "hello" not in gateway.routes
    waiting = asyncio.create_task(activate(deployer, "hello"))
    world.gate.set()
    await deployer.settle("hello")
    assert gateway.routes["hello"].endpoint.startswith("tcp:127.0.0.1:")
    assert (await waiting).endpoint == gateway.routes["hello"].endpoint
    # Older revisions end only once the gateways have taken the new one.
    await eventually(lambda: ("settle 1", function.uid) in world.calls)
    await gateway.leave()


async def test_the_way_is_told_before_it_is_ready(
    start: Start, builder: TinyBuilder, world: RecordingDriver
) -> None:
    world.ingress = "tcp:10.0.0.9:80"
    world.gate = asyncio.Event()
    deployer = await start(driver=world)
    gateway = Gateway(deployer)
    function = await deployer.create("hello")
    await gateway.until(lambda: "hello" in gateway.routes)
    route = gateway.routes["hello"]
    assert (route.endpoint, route.host) == (world.ingress, function.uid)
    assert route.state == State.STATE_DEPLOYING
    world.gate.set()
    events = await deployer.settle("hello")
    assert gateway.routes["hello"].state == State.STATE_READY
    moves = [e.stage for e in events if e.HasField("stage") and e.stage.stage == Stage.STAGE_ROUTE]
    assert len(moves) == 2  # started, finished
    await gateway.leave()


async def test_a_failure_takes_back_the_way_that_was_told(
    start: Start, builder: TinyBuilder, world: RecordingDriver
) -> None:
    world.ingress = "tcp:10.0.0.9:80"
    world.gate = asyncio.Event()
    deployer = await start(driver=world)
    gateway = Gateway(deployer)
    await deployer.create("broken", handler="DEPLOY FAILS")
    await gateway.until(lambda: "broken" in gateway.routes)
    world.gate.set()
    await deployer.settle("broken")
    await gateway.until(lambda: gateway.routes["broken"].state == State.STATE_FAILED)
    assert gateway.routes["broken"].endpoint == ""
    await gateway.leave()


async def test_a_cold_function_is_woken_by_who_calls_it(
    start: Start, builder: TinyBuilder, world: RecordingDriver
) -> None:
    deployer = await start(driver=world)
    function = await deployer.ready("hello")
    gateway = Gateway(deployer)
    await gateway.until(lambda: "hello" in gateway.routes)
    world.idle(function.uid)
    world.move(function.uid, Endpoint(""))
    await gateway.until(lambda: gateway.routes["hello"].cold)
    assert gateway.routes["hello"].endpoint == ""
    assert (await deployer.get("hello")).state == State.STATE_IDLE
    waiting = asyncio.create_task(activate(deployer, "hello"))
    await eventually(lambda: ("wake", function.uid) in world.calls)
    assert not waiting.done()
    world.move(function.uid, Endpoint("tcp:10.0.0.1:80", ("tcp:10.0.0.2:80",), "fn.example"))
    world.active(function.uid)
    route = await waiting
    assert (route.endpoint, route.host, route.cold) == ("tcp:10.0.0.1:80", "fn.example", False)
    assert list(route.endpoints) == ["tcp:10.0.0.1:80", "tcp:10.0.0.2:80"]
    await gateway.leave()


async def test_a_lost_artefact_is_built_again(
    start: Start, builder: TinyBuilder, world: RecordingDriver
) -> None:
    deployer = await start(driver=world)
    function = await deployer.ready("hello")
    builder.builds.clear()
    world.lose_artefact(function.uid)
    await eventually(lambda: world.calls.count(("deploy", function.uid)) == 2)
    await eventually(lambda: bool(builder.builds))
    await deployer.settle("hello")
    assert (await deployer.get("hello")).state == State.STATE_READY


async def test_what_failed_leaves_nothing_running(
    start: Start, builder: TinyBuilder, world: RecordingDriver
) -> None:
    deployer = await start(driver=world)
    function = await deployer.create("broken", handler="DEPLOY FAILS")
    await deployer.settle("broken")
    assert (await deployer.get("broken")).state == State.STATE_FAILED
    assert ("fail", function.uid) in world.calls


async def test_one_replica_follows_and_another_takes_over(
    start: Start, builder: TinyBuilder, world: RecordingDriver
) -> None:
    one = await start("one", driver=world)
    function = await one.ready("hello")
    other = RecordingDriver(world.directory, world.functions, reserves=False, shared=True)
    two = await start("two", driver=other)
    two.driver.idle(function.uid)
    world.start_instance(function.uid, "i-1")
    world.start_instance(function.uid, "i-2")
    await eventually(lambda: _instances(one, 2))
    assert (await two.get("hello")).state == State.STATE_READY
    await one.end()
    await eventually(lambda: _state(two, State.STATE_IDLE))


async def test_a_deletion_that_another_replica_began_is_over_when_this_one_says_so(
    start: Start, builder: TinyBuilder, world: RecordingDriver
) -> None:
    deployer = await start(driver=world)
    await deployer.ready("hello")
    gateway = Gateway(deployer)
    await gateway.until(lambda: "hello" in gateway.routes)
    # The other has written that, and is about to tell.
    store = await Store.open(deployer.settings.database_url, SCHEMA.name, SCHEMA.queries)
    async with store.connection() as connection:
        await connection.execute(
            "UPDATE functions SET ended_time = now(), state = $1, version = version + 1",
            State.STATE_RECLAIMING,
        )
    await store.close()
    await deployer.delete("hello")
    assert "hello" not in gateway.routes
    await gateway.leave()


async def test_another_replica_goes_on_at_once_with_what_one_leaves(
    start: Start, builder: TinyBuilder, world: RecordingDriver
) -> None:
    claim = timedelta(minutes=10)  # nobody waits for that
    one = await start("one", driver=world, claim=claim)
    world.gate = asyncio.Event()
    function = await one.create("hello")
    await eventually(lambda: ("deploy", function.uid) in world.calls)
    other = RecordingDriver(world.directory, world.functions, reserves=False, shared=True)
    two = await start("two", driver=other, claim=claim)
    await one.end()
    await two.settle("hello")
    assert ("deploy", function.uid) in other.calls
    assert (await two.get("hello")).state == State.STATE_READY


async def _instances(deployer: Running, count: int) -> bool:
    return (await deployer.get("hello")).instances == count


async def _state(deployer: Running, state: State.ValueType) -> bool:
    return (await deployer.get("hello")).state == state


async def test_routes_in_gateways_of_other_replicas_are_looked_at(
    start: Start, builder: TinyBuilder, world: RecordingDriver
) -> None:
    one = await start("one", driver=world)
    other = RecordingDriver(world.directory, world.functions, reserves=False, shared=True)
    two = await start("two", driver=other)
    gateway = Gateway(two, "far")
    gateway.leftovers.append("stray")
    await gateway.until(lambda: gateway.complete)

    async def found() -> bool:
        request = reclaimer_pb2.ListResourcesRequest()
        parts = [part async for part in one.reclaimer.ListResources(request)]
        assert "Envoy of far: no answer" not in parts[-1].looked_at
        return any(r.id == "far/stray" and r.orphan for part in parts for r in part.resources)

    await eventually(found)
    await gateway.leave()


async def test_a_claim_lasts_until_what_failed_is_removed(
    start: Start, builder: TinyBuilder, world: RecordingDriver
) -> None:
    deployer = await start(driver=world, claim=timedelta(milliseconds=300))
    world.fail_gate = asyncio.Event()
    function = await deployer.create("hello", handler="DEPLOY FAILS")
    await deployer.settle("hello")
    store = await Store.open(deployer.settings.database_url, SCHEMA.name, SCHEMA.queries)

    async def claimed_until() -> datetime | None:
        async with store.connection() as connection:
            return await connection.fetchval("SELECT claim_until FROM functions")

    first = await claimed_until()
    assert first is not None

    async def kept() -> bool:
        until = await claimed_until()
        return until is not None and until > first

    await eventually(kept)
    world.fail_gate.set()
    await eventually(lambda: ("failed", function.uid) in world.calls)

    async def free() -> bool:
        return await claimed_until() is None

    await eventually(free)
    await store.close()
