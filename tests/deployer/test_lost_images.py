"""Images that somebody has removed from the registry: noticed, and made again."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, timedelta
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration
from mayfly.v1.function_pb2 import (
    Function,
    RenewFunctionRequest,
    State,
    TailLogsRequest,
)

from services.deployer.lost_images import Try, after, due

from .conftest import Running, Start, eventually
from .recording_driver import RecordingDriver
from .tiny_builder import TinyBuilder

OFTEN = timedelta(milliseconds=50)
SERVING = {"a": "builds/1", "b": "builds/2"}


@pytest.fixture
def world(directory: Path) -> RecordingDriver:
    """A driver as that of a cluster is."""
    return RecordingDriver(directory / "functions", reserves=False, shared=True)


def test_what_was_tried_is_left_alone_for_a_while() -> None:
    tries = {"a": Try(1, 10.0)}
    assert due(SERVING, tries, 9.0) == {"b": "builds/2"}
    assert due(SERVING, tries, 10.0) == SERVING


def test_an_image_that_is_lost_again_is_tried_less_often() -> None:
    tries = after({}, SERVING, ["a"], 0.0, every=30)
    assert tries == {"a": Try(1, 60.0)}
    tries = after(tries, SERVING, ["a"], 60.0, every=30)
    assert tries == {"a": Try(2, 180.0)}
    assert after({"a": Try(50, 0.0)}, SERVING, ["a"], 0.0, every=30)["a"].until == 600.0


def test_an_image_that_is_there_again_is_forgotten() -> None:
    tries = {"a": Try(3, 10.0), "b": Try(3, 90.0)}
    assert after(tries, ["a"], [], 20.0, every=30) == {"b": Try(3, 90.0)}


def test_tries_of_functions_that_have_ended_are_forgotten() -> None:
    tries = {"a": Try(1, 60.0)}
    assert after(tries, [], [], 100.0, every=30) == tries
    assert after(tries, [], [], 700.0, every=30) == {}


async def test_an_image_that_is_lost_is_made_again_behind_what_serves(
    start: Start, builder: TinyBuilder, world: RecordingDriver
) -> None:
    deployer = await start(driver=world, image_look=OFTEN)
    function = await deployer.ready("hello")
    other = await deployer.ready("other", handler="def handler(event, ctx):\n    return 2\n")
    builder.lost.add(function.build)
    await eventually(lambda: world.calls.count(("deploy", function.uid)) == 2)
    # A revision of its own: the older one serves until then, and ends then.
    await eventually(lambda: ("settle 2", function.uid) in world.calls)
    assert (await deployer.get("hello")).state == State.STATE_READY
    assert world.calls.count(("deploy", other.uid)) == 1
    assert await told(deployer, "hello", function.build)
    assert await states(deployer, "hello") == [
        *("PENDING", "BUILDING", "DEPLOYING", "READY"),
        "READY",
    ]


async def test_what_cannot_be_made_again_serves_on(
    start: Start, builder: TinyBuilder, world: RecordingDriver
) -> None:
    deployer = await start(driver=world, image_look=OFTEN)
    function = await deployer.ready("hello")
    builder.fail_again(function.build)
    builder.lost.add(function.build)
    await eventually(lambda: _failed(deployer, "hello"))
    assert (await deployer.get("hello")).state == State.STATE_READY
    assert ("fail", function.uid) not in world.calls
    builder.builds.clear()
    await eventually(lambda: world.calls.count(("deploy", function.uid)) == 2)


async def test_an_image_whose_build_ended_before_the_renewal_is_made_again(
    start: Start, builder: TinyBuilder, world: RecordingDriver
) -> None:
    """A deployer that was away could not tell the builder in time."""
    builder.registry = "registry.example/functions"
    deployer = await start(driver=world)
    function = await deployer.ready("hello", ttl=60)
    builder.builds.clear()
    request = RenewFunctionRequest(name=function.name, ttl=Duration(seconds=600))
    await deployer.functions.RenewFunction(request)
    await eventually(lambda: ("settle 2", function.uid) in world.calls)
    assert function.build in builder.builds
    assert await states(deployer, "hello") == [
        *("PENDING", "BUILDING", "DEPLOYING", "READY"),
        "READY",
    ]


async def deploying(
    deployer: Running, world: RecordingDriver, builder: TinyBuilder
) -> tuple[Function, asyncio.Event]:
    """Return a function whose image cannot be pulled once the event is set."""
    builder.registry = "registry.example/functions"
    world.gate = asyncio.Event()
    function = await deployer.create("hello", ttl=60)
    await eventually(lambda: ("deploy", function.uid) in world.calls)
    (build,) = builder.builds.values()
    failure = {"reason": "IMAGE_PULL_FAILED", "message": "not found", "fix": ""}
    Path(build.artefact.directory, "deploy_fails.json").write_text(json.dumps(failure))
    return function, world.gate


async def test_an_image_whose_build_ended_before_the_deploy_is_made_again(
    start: Start, builder: TinyBuilder, world: RecordingDriver
) -> None:
    deployer = await start(driver=world)
    function, gate = await deploying(deployer, world, builder)
    (name,) = builder.builds
    request = RenewFunctionRequest(name=function.name, ttl=Duration(seconds=600))
    renewed = (await deployer.functions.RenewFunction(request)).function
    builder.builds.clear()
    gate.set()
    assert await states(deployer, "hello") == [
        *("PENDING", "BUILDING", "DEPLOYING"),
        *("BUILDING", "DEPLOYING", "READY"),
    ]
    # What could not be pulled is gone before, and the build lasts as long as the lease.
    of_it = [call for call, uid in world.calls if uid == function.uid]
    assert of_it[:3] == ["deploy", "remove", "deploy"]
    assert await told(deployer, "hello", name)
    until = renewed.expire_time.ToDatetime(tzinfo=UTC)
    await eventually(lambda: builder.held[name, function.uid] == until)


async def test_an_image_that_is_there_and_cannot_be_pulled_fails_the_deploy(
    start: Start, builder: TinyBuilder, world: RecordingDriver
) -> None:
    deployer = await start(driver=world)
    function, gate = await deploying(deployer, world, builder)
    gate.set()
    assert await states(deployer, "hello") == ["PENDING", "BUILDING", "DEPLOYING", "FAILED"]
    assert (await deployer.get("hello")).failure.reason == "IMAGE_PULL_FAILED"
    assert world.calls.count(("deploy", function.uid)) == 1


async def test_a_builder_that_cannot_look_loses_nothing(
    start: Start, builder: TinyBuilder, world: RecordingDriver
) -> None:
    deployer = await start(driver=world, image_look=OFTEN)
    function = await deployer.ready("hello")
    builder.lost.add(function.build)
    builder.blind = True
    looks = builder.looks
    await eventually(lambda: builder.looks > looks + 2)
    assert world.calls.count(("deploy", function.uid)) == 1


async def _failed(deployer: Running, function_id: str) -> bool:
    return (await deployer.get(function_id)).HasField("failure")


async def told(deployer: Running, function_id: str, word: str) -> bool:
    """Whether a line of a function's log has this word."""
    request = TailLogsRequest(name=f"functions/{function_id}", tail=100)
    return any([word in m.log.text async for m in deployer.functions.TailLogs(request)])


async def states(deployer: Running, function_id: str) -> list[str]:
    """Return the states that a function has been in, as it told."""
    return [
        State.Name(event.state.state).removeprefix("STATE_")
        for event in await deployer.settle(function_id)
        if event.HasField("state")
    ]
