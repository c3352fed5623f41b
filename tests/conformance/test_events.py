"""Events and logs: gapless, live, resumable; and what functions write can be read."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from itertools import pairwise

from tests.conformance.door import Door, Json, example, problem_of, seconds_of, time_of, until

HELLO = "def handler(event, ctx):\n    return 1\n"


async def gather_events(mayfly: Door, function: Json, **query: str) -> list[Json]:
    """Return the events of a stream that ends by itself."""
    return [e async for e in mayfly.events(function, **query)]


def stages(events: list[Json]) -> list[tuple[str, str]]:
    """Return (stage, progress) of the stage events, without the enums' prefixes."""
    return [
        (
            e["stage"]["stage"].removeprefix("STAGE_"),
            e["stage"]["progress"].removeprefix("PROGRESS_"),
        )
        for e in events
        if "stage" in e
    ]


async def test_a_life_from_submit_to_receipt_is_told_in_events(mayfly: Door) -> None:
    function = await mayfly.create(handler=HELLO)
    watched = asyncio.create_task(gather_events(mayfly, function))
    await mayfly.settled(function, "READY")
    await mayfly.renew(function, "100s")
    await mayfly.delete(function)
    events = await asyncio.wait_for(watched, 20)
    assert [int(e["sequence"]) for e in events] == list(range(1, len(events) + 1))
    times = [time_of(e["time"]) for e in events]
    assert all(later >= earlier - 0.05 for earlier, later in pairwise(times))
    seen = stages(events)
    for stage in ("CHECK", "BUILD", "DEPLOY", "ROUTE", "RECLAIM"):
        assert (stage, "FINISHED") in seen, (stage, seen)
    states = [e["state"]["state"].removeprefix("STATE_") for e in events if "state" in e]
    assert states[0] == "PENDING"
    assert states[-1] == "RECLAIMED"
    assert states.index("BUILDING") < states.index("READY") < states.index("EXPIRED")
    ended = next(e["state"] for e in events if e.get("state", {}).get("state") == "STATE_EXPIRED")
    assert ended["endReason"] == "END_REASON_DELETED"
    assert any("lease" in e for e in events)
    for event in events:
        if event.get("stage", {}).get("progress") == "PROGRESS_FINISHED":
            assert seconds_of(event["stage"]["duration"]) >= 0


async def test_a_watch_is_resumed_after_the_last_event_seen(mayfly: Door) -> None:
    function = await mayfly.create(handler=HELLO)
    first: list[Json] = []
    broken = mayfly.events(function)
    async with aclosing(broken):
        async for event in broken:
            first.append(event)
            if len(first) == 3:
                break
    rest = await gather_events(mayfly, function, after=first[-1]["sequence"], until_settled="true")
    numbers = [int(e["sequence"]) for e in first + rest]
    assert numbers == list(range(1, len(numbers) + 1))
    again = await gather_events(mayfly, function, until_settled="true")
    assert [e["sequence"] for e in again][: len(numbers)] == [str(n) for n in numbers]


async def test_until_settled_ends_at_once_for_a_settled_function(mayfly: Door) -> None:
    function = await mayfly.ready(handler=HELLO)
    events = await asyncio.wait_for(gather_events(mayfly, function, until_settled="true"), 3)
    assert events
    last = events[-1]["sequence"]
    none = await asyncio.wait_for(
        gather_events(mayfly, function, after=last, until_settled="true"), 3
    )
    assert none == []


async def test_a_tombstone_can_still_be_watched(mayfly: Door) -> None:
    function = await mayfly.ready(handler=HELLO)
    await mayfly.delete(function)
    await mayfly.receipt(function)
    events = await asyncio.wait_for(gather_events(mayfly, function), 5)
    assert events[-1]["state"]["state"] == "STATE_RECLAIMED"


async def test_the_watch_is_server_sent_events(mayfly: Door) -> None:
    function = await mayfly.create(handler=HELLO)
    path = f"/v1/{function['name']}:watch"
    async with mayfly.http.stream(
        "GET",
        path,
        params={"until_settled": "true"},
        headers={"accept": "text/event-stream"},
    ) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        text = (await response.aread()).decode()
    assert all(
        line.startswith(("data:", ":", "id:", "event:")) for line in text.splitlines() if line
    ), text


async def test_a_failure_is_an_event(mayfly: Door) -> None:
    function = await mayfly.create(handler=example("broken.py"))
    events = await gather_events(mayfly, function, until_settled="true")
    failure = next(e["failure"] for e in events if "failure" in e)
    assert failure["reason"] == "SOURCE_SYNTAX"
    assert failure["fix"]
    assert any(progress == "FAILED" for _, progress in stages(events))


async def test_events_come_while_they_happen(mayfly: Door) -> None:
    code = "import time\nprint('importing', flush=True)\ntime.sleep(2)\n" + HELLO
    function = await mayfly.create(handler=code)
    loop = asyncio.get_running_loop()
    at: dict[str, float] = {}
    async for event in mayfly.events(function, until_settled="true"):
        text = event.get("log", {}).get("text") or event.get("state", {}).get("state")
        if text:
            at.setdefault(text, loop.time())
    assert at["STATE_READY"] - at["importing"] > 1.0, at


async def test_what_a_handler_writes_is_in_its_logs(mayfly: Door, on_cluster: bool) -> None:
    code = (
        "import sys, logging\n"
        "print('at import')\n"
        "def handler(event, ctx):\n"
        "    print('to stdout', ctx.request_id)\n"
        "    print('to stderr', file=sys.stderr)\n"
        "    sys.stdout.write('no line end')\n"
        "    return 1\n"
    )
    function = await mayfly.create(handler=code)
    await mayfly.call(function, headers={"x-request-id": "wish-1"})
    text = await mayfly.log_holding(function, "(?s)to stdout.*to stderr|to stderr.*to stdout")
    assert "at import" in text
    async with mayfly.stream(f"/v1/{function['name']}:logs", tail=100) as messages:
        lines = {m["log"]["text"]: m["log"] async for m in messages}
    # Kubernetes gives a container's two streams as one.
    stderr = "ORIGIN_STDOUT" if on_cluster else "ORIGIN_STDERR"
    assert lines["to stderr"]["origin"] == stderr
    assert lines["to stderr"]["instance"]
    out = next(log for text, log in lines.items() if text.startswith("to stdout"))
    assert out["origin"] == "ORIGIN_STDOUT"


async def test_an_exception_is_500_and_a_traceback_in_the_logs(mayfly: Door) -> None:
    code = "def deeper(x):\n    return 1 / x\ndef handler(event, ctx):\n    return deeper(0)\n"
    function = await mayfly.create(handler=code)
    answer = await mayfly.call(function, headers={"x-request-id": "wish-2"})
    assert answer.status_code == 500
    assert answer.json() == {"error": "internal", "request_id": "wish-2"}
    assert "ZeroDivisionError" not in answer.text
    text = await mayfly.log_holding(function, "ZeroDivisionError")
    assert "Traceback" in text
    assert "in deeper" in text
    assert "wish-2" in text


async def test_new_lines_are_followed(mayfly: Door) -> None:
    code = "def handler(event, ctx):\n    print(event['query']['say'])\n    return 1\n"
    function = await mayfly.ready(handler=code)
    seen: list[str] = []
    path = f"/v1/{function['name']}:logs"
    async with mayfly.stream(path, follow="true") as messages:
        for word in ("one", "two", "three"):
            await mayfly.call(function, f"?say={word}")
            async with asyncio.timeout(5):
                async for message in messages:
                    seen.append(message["log"]["text"])
                    if message["log"]["text"] == word:
                        break
    assert [s for s in seen if s in {"one", "two", "three"}] == ["one", "two", "three"]


async def test_following_ends_with_the_function(mayfly: Door) -> None:
    function = await mayfly.ready(handler=HELLO)

    async def follow() -> None:
        async with mayfly.stream(f"/v1/{function['name']}:logs", follow="true") as messages:
            async for _ in messages:
                pass

    following = asyncio.create_task(follow())
    await mayfly.delete(function)
    await asyncio.wait_for(following, 20)


async def test_tail_is_the_last_lines(mayfly: Door) -> None:
    code = "def handler(event, ctx):\n    for i in range(50):\n        print('line', i)\n"
    function = await mayfly.create(handler=code)
    await mayfly.call(function)
    await mayfly.log_holding(function, "line 49")
    lines = await mayfly.log_lines(function, tail=3)
    assert lines[-3:] == ["line 47", "line 48", "line 49"]
    assert len(lines) == 3


async def test_a_function_that_writes_without_end_hurts_nobody(mayfly: Door) -> None:
    flood = (
        "import threading\n"
        "def write():\n    while True:\n        print('x' * 1000)\n"
        "threading.Thread(target=write, daemon=True).start()\n"
        "def handler(event, ctx):\n    return 'still here'\n"
    )
    noisy = await mayfly.ready(handler=flood)
    quiet = await mayfly.ready(handler=HELLO)
    for _ in range(20):
        answer = await mayfly.call(quiet)
        assert answer.status_code == 200
        assert (await mayfly.call(noisy)).status_code == 200
    assert len(await mayfly.log_lines(noisy)) <= 1000
    await mayfly.delete(noisy)


async def test_bytes_that_are_no_text_are_replaced(mayfly: Door) -> None:
    code = (
        "import os\n"
        "def handler(event, ctx):\n"
        "    os.write(1, b'broken \\xff\\xfe bytes\\n')\n"
        "    os.write(1, b'y' * 100_000 + b'\\n')\n"
        "    os.write(1, b'after\\n')\n"
        "    return 1\n"
    )
    function = await mayfly.create(handler=code)
    await mayfly.call(function)
    text = await mayfly.log_holding(function, "(?m)^after$")
    assert "broken \ufffd" in text
    assert max(len(line) for line in text.splitlines()) <= 20_000


async def test_what_requests_print_at_the_same_time_is_whole_lines(mayfly: Door) -> None:
    code = (
        "import threading\n"
        "together = threading.Barrier(8)\n"
        "def handler(event, ctx):\n"
        "    together.wait(30)\n"
        "    for _ in range(20):\n"
        "        print('a line')\n"
        "    return 1\n"
    )
    function = await mayfly.ready(handler=code, maxInstances=1)
    answers = await asyncio.gather(*(mayfly.call(function) for _ in range(8)))
    assert [answer.status_code for answer in answers] == [200] * 8
    text = await mayfly.log_holding(function, "(?:a line[^l]*){160}")
    lines = [line for line in text.splitlines() if "line" in line or not line]
    assert lines == ["a line"] * 160


async def test_the_build_log_is_there(mayfly: Door) -> None:
    # Of a source that nobody has built before; its requirements may be there already, which is said
    # instead.
    code = f"{example('markdown.py')}\n# {mayfly.new_id()}\n"
    function = await mayfly.ready(handler=code)
    async with mayfly.stream(f"/v1/{function['name']}:logs", tail=1000) as messages:
        origins = {m["log"]["origin"] async for m in messages}
    events = await gather_events(mayfly, function, until_settled="true")
    details = " ".join(e["stage"].get("detail", "") for e in events if "stage" in e)
    told = "ORIGIN_BUILD" in origins or "environment" in details or "locked" in details
    assert told, (origins, details)


async def test_a_watch_of_many_all_end(mayfly: Door, on_cluster: bool) -> None:
    made = [await mayfly.create(handler=HELLO, minInstances=1) for _ in range(10)]
    watches = [asyncio.create_task(gather_events(mayfly, f)) for f in made]
    await asyncio.gather(*(mayfly.settled(f) for f in made))
    for function in made:
        await mayfly.delete(function)
    seconds = 60 if on_cluster else 30
    everything = await asyncio.wait_for(asyncio.gather(*watches), seconds)
    for events in everything:
        assert [int(e["sequence"]) for e in events] == list(range(1, len(events) + 1))


async def test_one_trace_from_submit_to_receipt(mayfly: Door) -> None:
    function = await mayfly.ready(handler=HELLO)
    assert (await mayfly.call(function)).status_code == 200
    await mayfly.delete(function)
    await mayfly.receipt(function)
    wanted = {"builder", "deployer", "janitor", "gateway"}

    async def probe() -> Json | None:
        response = await mayfly.http.get(f"/v1/{function['name']}:trace")
        assert response.status_code == 200, response.text
        trace: Json = response.json()
        services = {s["service"].removeprefix("mayfly-") for s in trace.get("spans", [])}
        return trace if wanted <= services else None

    trace = await until(probe, 12, what=f"spans of {wanted}", every=0.2)
    assert trace["traceId"] == function["traceId"]
    ids = {s["spanId"] for s in trace["spans"]}
    assert len(ids) == len(trace["spans"])
    for span in trace["spans"]:
        assert time_of(span["endTime"]) >= time_of(span["startTime"])
    begun = [time_of(s["startTime"]) for s in trace["spans"]]
    assert begun == sorted(begun)
    names = {s["name"] for s in trace["spans"]}
    assert any("build" in n.lower() for n in names), names
    assert any("reclaim" in n.lower() for n in names), names


async def test_a_trace_is_continued_from_its_caller(mayfly: Door) -> None:
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    response = await mayfly.http.post(
        "/v1/functions",
        params={"function_id": mayfly.new_id("traced")},
        json={"handler": HELLO, "ttl": "60s"},
        headers={"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"},
    )
    assert response.json()["traceId"] == trace_id


async def test_a_failed_build_is_an_error_in_the_trace(mayfly: Door) -> None:
    function = await mayfly.settled(await mayfly.create(handler=example("broken.py")), "FAILED")

    async def probe() -> list[Json] | None:
        trace = (await mayfly.http.get(f"/v1/{function['name']}:trace")).json()
        return [s for s in trace.get("spans", []) if s.get("error")] or None

    failed = await until(probe, 10, what="a span with an error", every=0.2)
    assert any("SOURCE_SYNTAX" in s["error"] or "never closed" in s["error"] for s in failed)


async def test_watching_an_unknown_function_is_not_found(mayfly: Door) -> None:
    response = await mayfly.http.get(f"/v1/functions/{mayfly.new_id('no')}:watch")
    assert problem_of(response).reason == "NOT_FOUND"
