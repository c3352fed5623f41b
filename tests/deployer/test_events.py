"""Events, logs, traces."""

from __future__ import annotations

import asyncio
import time

from mayfly.v1 import function_pb2
from mayfly.v1.function_pb2 import LogEvent, StageEvent, State
from mayfly.v1.source_pb2 import Stage

from .conftest import Gateway, Running, eventually
from .tiny_builder import TinyBuilder


async def test_slow_build_tells_its_log_while_it_runs(
    deployer: Running, builder: TinyBuilder
) -> None:
    gateway = Gateway(deployer)
    await deployer.create("slow", handler="SLOW")
    # The address is there long before the build ends: requests wait on it.
    await gateway.until(lambda: "slow" in gateway.routes)
    assert gateway.routes["slow"].endpoint
    request = function_pb2.WatchFunctionRequest(name="functions/slow", until_settled=True)
    lines: list[str] = []
    events = []
    async with asyncio.timeout(10):
        async for message in deployer.functions.WatchFunction(request):
            events.append(message.event)
            if message.event.WhichOneof("kind") == "log":
                assert message.event.log.origin == LogEvent.ORIGIN_BUILD
                lines.append(message.event.log.text)
                if len(lines) == 2:
                    assert (await deployer.get("slow")).state == State.STATE_BUILDING
                    builder.go_on.set()
    assert lines == ["resolving", "installing"]
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    finished = {
        event.stage.stage for event in events
        if event.stage.progress == StageEvent.PROGRESS_FINISHED
    }  # fmt: skip
    assert finished == {Stage.STAGE_CHECK, Stage.STAGE_DEPLOY, Stage.STAGE_ROUTE}
    await gateway.leave()


async def test_watch_resumes_after_a_sequence_number_and_ends_with_the_function(
    deployer: Running,
) -> None:
    function = await deployer.ready("hello")
    first = await deployer.settle("hello")
    request = function_pb2.WatchFunctionRequest(name="functions/hello", after=first[3].sequence)

    async def watched() -> list:
        return [m.event async for m in deployer.functions.WatchFunction(request)]

    watching = asyncio.create_task(watched())
    await deployer.delete("hello")
    await deployer.reclaim(function)
    async with asyncio.timeout(10):
        rest = await watching
    assert [event.sequence for event in rest] == list(range(5, 5 + len(rest)))
    states = [event.state.state for event in rest if event.WhichOneof("kind") == "state"]
    assert states[-3:] == [State.STATE_EXPIRED, State.STATE_RECLAIMING, State.STATE_RECLAIMED]


async def tail(deployer: Running, function_id: str, **options) -> list[str]:
    request = function_pb2.TailLogsRequest(name=f"functions/{function_id}", **options)
    async with asyncio.timeout(10):
        return [m.log.text async for m in deployer.functions.TailLogs(request)]


async def test_logs_of_instances(deployer: Running) -> None:
    function = await deployer.ready("hello")
    for n in range(150):
        deployer.driver.print_line(function.uid, f"line {n}", time.time())

    async def all_there() -> bool:
        return (await tail(deployer, "hello", tail=1)) == ["line 149"]

    await eventually(all_there)
    assert await tail(deployer, "hello", tail=3) == ["line 147", "line 148", "line 149"]
    assert len(await tail(deployer, "hello")) == 100

    following = asyncio.create_task(tail(deployer, "hello", tail=1, follow=True))
    deployer.driver.print_line(function.uid, "last words", time.time())
    await eventually(lambda: _has_last_line(deployer, "last words"))
    await deployer.delete("hello")
    await deployer.reclaim(function)
    assert await following in (["line 149", "last words"], ["last words"])


async def _has_last_line(deployer: Running, text: str) -> bool:
    return await tail(deployer, "hello", tail=1) == [text]


async def test_a_function_that_prints_without_end_keeps_the_newest_lines(
    deployer: Running,
) -> None:
    function = await deployer.ready("chatty")
    for n in range(6000):
        deployer.driver.print_line(function.uid, f"line {n}", time.time())
        if n % 500 == 0:
            await asyncio.sleep(0)

    async def trimmed() -> bool:
        deployer.driver.print_line(function.uid, "end", time.time())
        kept = await tail(deployer, "chatty", tail=100_000)
        return 900 < len(kept) <= 1300 and kept[-1] == "end"

    await eventually(trimmed)


async def test_states_and_instances_follow_the_driver(deployer: Running) -> None:
    function = await deployer.ready("hello")

    async def seen(state: int, instances: int) -> bool:
        now = await deployer.get("hello")
        return (now.state, now.instances) == (state, instances)

    deployer.driver.start_instance(function.uid, "a")
    deployer.driver.start_instance(function.uid, "b")
    await eventually(lambda: seen(State.STATE_READY, 2))
    deployer.driver.idle(function.uid)
    await eventually(lambda: seen(State.STATE_IDLE, 0))
    deployer.driver.active(function.uid)
    await eventually(lambda: seen(State.STATE_READY, 0))


async def test_one_trace_from_create_to_reclaim(deployer: Running) -> None:
    function = await deployer.ready("hello")
    await deployer.delete("hello")
    await deployer.reclaim(function)
    request = function_pb2.GetTraceRequest(name="functions/hello")
    wanted = {"function", "create", "build", "deploy", "route", "reclaim"}

    async def complete():
        trace = await deployer.functions.GetTrace(request)
        return trace if wanted <= {span.name for span in trace.spans} else None

    trace = await eventually(complete)
    assert trace.trace_id == function.trace_id
    spans = {span.name: span for span in trace.spans}
    root = spans["function"]
    for name in wanted - {"function"}:
        assert spans[name].parent_span_id == root.span_id, name
        assert spans[name].service == "deployer"
    assert root.end_time.ToNanoseconds() >= spans["reclaim"].start_time.ToNanoseconds()
