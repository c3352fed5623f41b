"""What a kill, a lost driver, an absent builder and a second replica do to functions: nothing."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from google.protobuf.duration_pb2 import Duration
from mayfly.v1 import function_pb2, reclaimer_pb2
from mayfly.v1.function_pb2 import State

from services.standalone.postgres import EmbeddedPostgres

from .conftest import Gateway, Start, eventually
from .recording_driver import RecordingDriver
from .test_main_path import ask
from .tiny_builder import TinyBuilder


async def test_everything_is_as_it_was_after_a_kill(
    start: Start, builder: TinyBuilder, directory
) -> None:
    first = await start()
    script = await first.ready("script", script="serve", ttl=300)
    handler = await first.ready("handler", ttl=300)
    overdue = await first.ready("overdue", ttl=0.4)
    await first.create("slow", handler="SLOW")
    await first.create("failed", handler="BUILD FAILS")
    await first.settle("failed")
    gateway = Gateway(first)
    await gateway.until(lambda: "script" in gateway.routes and "slow" in gateway.routes)
    endpoints = {name: gateway.routes[name].endpoint for name in ("script", "handler")}
    await first.kill()
    await gateway.leave()
    await asyncio.sleep(0.4)  # the lease of one ends while nobody is there

    second = await start(driver=RecordingDriver(directory / "functions"))
    gateway = Gateway(second)
    await gateway.until(lambda: gateway.complete)
    assert "overdue" not in gateway.routes
    for function in (script, handler):
        name = function.name.removeprefix("functions/")
        now = await second.get(name)
        assert (now.uid, now.state, now.expire_time) == (
            function.uid, State.STATE_READY, function.expire_time
        )  # fmt: skip
        assert gateway.routes[name].endpoint == endpoints[name]
        assert b"200" in await ask(endpoints[name])
    assert gateway.routes["failed"].state == State.STATE_FAILED
    builder.go_on.set()
    await second.settle("slow")
    assert (await second.get("slow")).state == State.STATE_READY

    deadlines = second.reclaimer.WatchDeadlines(reclaimer_pb2.WatchDeadlinesRequest())
    snapshot = await deadlines.read()
    deadlines.cancel()
    assert "functions/overdue" in {deadline.name for deadline in snapshot.upserts}
    (outcome,) = await second.reclaim(overdue)
    assert outcome.result == outcome.RESULT_RECLAIMED
    await gateway.leave()


async def test_reclamation_that_was_interrupted_goes_on(
    start: Start, builder: TinyBuilder, directory
) -> None:
    first = await start()
    function = await first.ready("hello")
    first.driver.removable = False
    await first.delete("hello")
    (outcome,) = await first.reclaim(function)
    assert outcome.result == outcome.RESULT_FAILED
    assert "device is busy" in outcome.error
    assert (await first.get("hello")).state == State.STATE_RECLAIMING
    await first.kill()

    second = await start(driver=RecordingDriver(directory / "functions"))
    deadlines = second.reclaimer.WatchDeadlines(reclaimer_pb2.WatchDeadlinesRequest())
    (deadline,) = (await deadlines.read()).upserts
    deadlines.cancel()
    assert deadline.ended
    (outcome,) = await second.reclaim(function)
    assert outcome.result == outcome.RESULT_RECLAIMED
    # Asked again, because the answer was lost say, it tells the same.
    (again,) = await second.reclaim(function)
    assert again == outcome


async def test_driver_that_lost_everything_gets_it_back(deployer) -> None:
    await deployer.ready("hello")
    gateway = Gateway(deployer)
    await gateway.until(lambda: "hello" in gateway.routes)
    endpoint = gateway.routes["hello"].endpoint
    await deployer.driver.lose_everything()
    await eventually(lambda: deployer.driver.functions)
    assert b"200" in await ask(endpoint)
    await gateway.leave()


async def test_builder_that_is_away_is_waited_for(start: Start, directory) -> None:
    deployer = await start()
    await deployer.create("hello")
    request = function_pb2.TailLogsRequest(name="functions/hello", follow=True)
    async with asyncio.timeout(10):
        async for line in deployer.functions.TailLogs(request):
            assert "waiting" in line.log.text
            break
    assert (await deployer.get("hello")).state == State.STATE_BUILDING
    builder = TinyBuilder(directory / "builds")
    await builder.start(f"unix:{directory}/builder")
    await deployer.settle("hello")
    assert (await deployer.get("hello")).state == State.STATE_READY
    await builder.stop()


async def test_deleted_while_it_is_built(deployer, builder: TinyBuilder) -> None:
    function = await deployer.create("slow", handler="SLOW")
    await eventually(lambda: builder.builds)
    await deployer.delete("slow")
    (outcome,) = await deployer.reclaim(function)
    assert outcome.result == outcome.RESULT_RECLAIMED
    builder.go_on.set()
    assert not deployer.driver.functions
    assert ("", function.uid) in builder.released


async def test_two_replicas_share_what_they_know(
    start: Start, builder: TinyBuilder, directory
) -> None:
    driver = RecordingDriver(directory / "functions")
    one = await start("one", driver=driver)
    two = await start("two", driver=driver)
    gateway = Gateway(two)
    await gateway.until(lambda: gateway.complete)
    watching = asyncio.create_task(two_events(two))
    function = await one.ready("hello")
    await gateway.until(lambda: "hello" in gateway.routes)
    events = await watching
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    # Deleted at one, gone at the gateway of the other when the call returns.
    await one.delete("hello")
    assert "hello" not in gateway.routes
    (outcome,) = await two.reclaim(function)
    assert outcome.result == outcome.RESULT_RECLAIMED
    assert driver.calls.count(("deploy", function.uid)) == 1
    await gateway.leave()


async def two_events(two) -> list:
    async def there() -> bool:
        listed = await two.functions.ListFunctions(function_pb2.ListFunctionsRequest())
        return bool(listed.functions)

    await eventually(there)
    return await two.settle("hello")


async def test_replica_takes_over_from_one_that_died(
    start: Start, builder: TinyBuilder, directory
) -> None:
    driver = RecordingDriver(directory / "functions")
    one = await start("one", driver=driver, claim="0.5")
    two = await start("two", driver=driver, claim="0.5")
    await one.create("slow", handler="SLOW")
    await eventually(lambda: builder.builds)
    await one.kill()
    builder.go_on.set()
    await two.settle("slow")
    assert (await two.get("slow")).state == State.STATE_READY


async def test_killed_postgres_loses_nothing(
    start: Start, builder: TinyBuilder, reachable_tmp: Path
) -> None:
    postgres = EmbeddedPostgres(reachable_tmp / "killed-below-a-deployer")
    await postgres.start()
    deployer = await start(database_url=postgres.dsn)
    gateway = Gateway(deployer)
    await deployer.ready("before")
    creating = [asyncio.create_task(deployer.ready(f"during-{n}")) for n in range(5)]
    assert postgres._child is not None
    os.kill(postgres._child.pid, signal.SIGKILL)
    for done in await asyncio.gather(*creating, return_exceptions=True):
        if isinstance(done, BaseException) and not isinstance(done, AssertionError):
            assert "UNAVAILABLE" in str(done), done
    after = await deployer.ready("after")
    request = function_pb2.ListFunctionsRequest()

    async def all_ready() -> bool:
        functions = (await deployer.functions.ListFunctions(request)).functions
        return all(function.state == State.STATE_READY for function in functions)

    await eventually(all_ready, seconds=30)
    renew = function_pb2.RenewFunctionRequest(name=after.name, ttl=Duration(seconds=900))
    await deployer.functions.RenewFunction(renew)
    await gateway.leave()
    await deployer.end()
    await postgres.stop()
