"""ReclaimerService: deadlines, batches, what is found by looking."""

from __future__ import annotations

import asyncio
import time

from mayfly.v1 import function_pb2, reclaimer_pb2, route_pb2
from mayfly.v1.function_pb2 import EndReason, State

from .conftest import Gateway, Running, Start, eventually
from .tiny_builder import TinyBuilder


class Deadlines:
    """What the janitor knows."""

    def __init__(self, deployer: Running) -> None:
        self.known: dict[str, reclaimer_pb2.Deadline] = {}
        self.removed: list[str] = []
        self.complete = False
        self._call = deployer.reclaimer.WatchDeadlines(reclaimer_pb2.WatchDeadlinesRequest())
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async for message in self._call:
            for deadline in message.upserts:
                self.known[deadline.uid] = deadline
            self.removed += message.removals
            self.complete = self.complete or message.snapshot_complete

    async def leave(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


async def resources(deployer: Running, **request) -> tuple[list, list[str]]:
    found, looked_at = [], []
    call = deployer.reclaimer.ListResources(reclaimer_pb2.ListResourcesRequest(**request))
    async for message in call:
        found += message.resources
        looked_at += message.looked_at
    return found, looked_at


async def test_deadlines_are_a_snapshot_and_then_changes(deployer: Running) -> None:
    before = await deployer.ready("before", ttl=60)
    deadlines = Deadlines(deployer)
    await eventually(lambda: deadlines.complete)
    assert deadlines.known[before.uid].expire_time == before.expire_time
    after = await deployer.create("after", ttl=60)
    await eventually(lambda: after.uid in deadlines.known)
    request = function_pb2.RenewFunctionRequest(name=before.name)
    renewed = (await deployer.functions.RenewFunction(request)).function
    await eventually(lambda: deadlines.known[before.uid].expire_time == renewed.expire_time)
    await deployer.delete("before")
    await eventually(lambda: deadlines.known[before.uid].ended)
    assert deadlines.known[before.uid].traceparent.split("-")[1] == before.trace_id
    await deployer.reclaim(before)
    await eventually(lambda: "functions/before" in deadlines.removed)
    await deadlines.leave()


async def test_hundreds_are_reclaimed_at_once(deployer: Running) -> None:
    gateway = Gateway(deployer)
    made = await asyncio.gather(*(deployer.create(f"f{n}", ttl=60) for n in range(450)))
    for function in made:
        await deployer.settle(function.name.removeprefix("functions/"))
    for function in made[:-1]:
        await deployer.delete(function.name.removeprefix("functions/"))
    begin = time.monotonic()
    outcomes = await deployer.reclaim(*made)
    print(f"{len(made)} reclaimed in {time.monotonic() - begin:.2f} s")
    results = [outcome.result for outcome in outcomes]
    Outcome = reclaimer_pb2.ReclaimOutcome
    assert results[:-1] == [Outcome.RESULT_RECLAIMED] * 449
    assert results[-1] == Outcome.RESULT_RENEWED
    assert [outcome.uid for outcome in outcomes] == [function.uid for function in made]
    assert set(gateway.routes) == {"f449"}
    await gateway.leave()


async def test_unknown_target_is_not_found(deployer: Running) -> None:
    target = reclaimer_pb2.ReclaimTarget(name="functions/nope", uid="nope")
    request = reclaimer_pb2.ReclaimRequest(targets=[target])
    (outcome,) = (await deployer.reclaimer.Reclaim(request)).outcomes
    assert outcome.result == outcome.RESULT_NOT_FOUND


async def test_idle_functions_end_and_used_ones_do_not(start: Start, builder: TinyBuilder) -> None:
    deployer = await start(idle_grace=0)
    gateway = Gateway(deployer)
    deadlines = Deadlines(deployer)
    used = await deployer.ready("used", ttl=60, idle_timeout=0.4)
    unused = await deployer.ready("unused", ttl=60, idle_timeout=0.4)
    open_stream = route_pb2.FunctionActivity(
        function_id="used", uid=used.uid, requests=1, in_flight=1
    )
    await gateway.report(open_stream)
    await eventually(lambda: deadlines.known[used.uid].expire_time != used.expire_time)

    async def ended(function: function_pb2.Function) -> bool:
        (outcome,) = await deployer.reclaim(function)
        return outcome.result == outcome.RESULT_RECLAIMED

    await eventually(lambda: ended(unused))
    assert (await deployer.get("unused")).end_reason == EndReason.END_REASON_IDLE
    # The stream is open beyond the idle time, and counts.
    (outcome,) = await deployer.reclaim(used)
    assert outcome.result == outcome.RESULT_RENEWED
    assert outcome.renewed_until == used.expire_time
    assert ("touch 1", used.uid) in deployer.driver.calls
    await gateway.report()
    await eventually(
        lambda: (
            deadlines.known[used.uid].expire_time.ToNanoseconds() < used.expire_time.ToNanoseconds()
        )
    )
    assert (await deployer.get("used")).HasField("last_use_time")
    await eventually(lambda: ended(used))
    await deadlines.leave()
    await gateway.leave()


async def test_resources_are_what_is_there(deployer: Running) -> None:
    gateway = Gateway(deployer)
    await gateway.until(lambda: gateway.complete)
    function = await deployer.ready("hello")
    await gateway.until(lambda: "hello" in gateway.routes)
    found, looked_at = await resources(deployer)
    assert {(r.type, r.owner, r.orphan) for r in found} == {
        ("socket", "functions/hello", False),
        ("route", "functions/hello", False),
        ("row", "functions/hello", False),
    }
    assert "Envoy of gateway-1" in looked_at

    await deployer.delete("hello")
    await deployer.reclaim(function)
    found, _ = await resources(deployer, uids=[function.uid])
    assert found == []

    # Things without an owner: a socket of nobody, a route that an Envoy kept.
    stray = deployer.driver.directory / "0123456789abcdef.sock"
    stray.touch()
    gateway.leftovers.append("hello")
    orphans, _ = await resources(deployer, orphans_only=True)
    assert {(r.type, r.uid) for r in orphans} == {
        ("socket", "0123456789abcdef"), ("route", function.uid)
    }  # fmt: skip
    request = reclaimer_pb2.ReclaimRequest(orphans=orphans)
    outcomes = (await deployer.reclaimer.Reclaim(request)).outcomes
    assert [outcome.result for outcome in outcomes] == [
        reclaimer_pb2.ReclaimOutcome.RESULT_RECLAIMED
    ] * 2
    assert not stray.exists()
    assert ("hello", function.uid) in {(r.function_id, r.uid) for r in gateway.removed}
    await gateway.leave()


async def test_tombstones_vanish(start: Start, builder: TinyBuilder) -> None:
    deployer = await start(tombstone_retention=0.5)
    function = await deployer.ready("hello", env={"SECRET": "s"})
    await deployer.delete("hello")
    await deployer.reclaim(function)
    tombstone = await deployer.get("hello")
    assert tombstone.state == State.STATE_RECLAIMED
    assert not tombstone.env
    request = function_pb2.ListFunctionsRequest(show_ended=True)

    async def gone() -> bool:
        return not (await deployer.functions.ListFunctions(request)).functions

    await eventually(gone)
