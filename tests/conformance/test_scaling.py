"""Instances: stopped when idle, started again by the next request, more of them under load."""

from __future__ import annotations

import asyncio

import pytest

from tests.conformance.door import Door, Json, example, state_of, until

PID = "import os\ndef handler(event, ctx):\n    return {'pid': os.getpid()}\n"
SLOW = (
    "import os, time, uuid\nme = uuid.uuid4().hex\n"
    "def handler(event, ctx):\n    time.sleep(0.5)\n    return {'me': me}\n"
)
IDLE_SECONDS = 100.0


async def idle(mayfly: Door, function: Json) -> None:
    """Wait until no instance of a function runs."""

    async def probe() -> bool:
        found = await mayfly.get(function)
        assert state_of(found) in {"READY", "IDLE"}, found
        return state_of(found) == "IDLE" and not found.get("instances")

    await until(probe, IDLE_SECONDS, what="IDLE", every=0.1)


@pytest.mark.timeout(240)
async def test_idle_functions_stop_and_the_next_request_starts_them(mayfly: Door) -> None:
    functions = [
        await mayfly.ready(handler=PID),
        await mayfly.ready(script=example("big_files.py")),
    ]
    await asyncio.gather(*(idle(mayfly, f) for f in functions))
    answers = await asyncio.gather(
        *(mayfly.call(functions[0]) for _ in range(8)),
        *(mayfly.call(functions[1], "?bytes=10") for _ in range(8)),
    )
    assert {a.status_code for a in answers} == {200}

    async def awake() -> bool:
        return state_of(await mayfly.get(functions[0])) == "READY"

    await until(awake, 5, what="READY again")


@pytest.mark.timeout(240)
async def test_what_must_run_is_kept_running(mayfly: Door) -> None:
    kept = await mayfly.ready(handler=PID, minInstances=1)
    other = await mayfly.ready(handler=PID)
    before = (await mayfly.call(kept)).json()
    await idle(mayfly, other)
    found = await mayfly.get(kept)
    assert (state_of(found), found["instances"]) == ("READY", 1)
    assert (await mayfly.call(kept)).json() == before


async def test_load_beyond_the_concurrency_starts_instances(mayfly: Door) -> None:
    function = await mayfly.ready(handler=SLOW, concurrency=2, maxInstances=3)
    served: set[str] = set()
    for _ in range(3):
        answers = await asyncio.gather(*(mayfly.call(function) for _ in range(12)))
        assert {a.status_code for a in answers} == {200}
        served |= {a.json()["me"] for a in answers}
    assert 2 <= len(served) <= 3
    assert (await mayfly.get(function))["instances"] <= 3


async def test_one_instance_at_most_is_one(mayfly: Door) -> None:
    function = await mayfly.ready(handler=SLOW, concurrency=2, maxInstances=1)
    answers = await asyncio.gather(*(mayfly.call(function) for _ in range(8)))
    assert len({a.json()["me"] for a in answers}) == 1


async def test_a_script_has_more_instances_under_load(mayfly: Door) -> None:
    code = (
        "# /// script\n# dependencies = []\n# ///\n"
        "import http.server, json, time, uuid\n"
        "me = uuid.uuid4().hex\n"
        "class Slow(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        time.sleep(0.3)\n"
        "        self.send_response(200)\n        self.end_headers()\n"
        "        self.wfile.write(json.dumps({'me': me}).encode())\n"
        "http.server.ThreadingHTTPServer(('0.0.0.0', 8000), Slow).serve_forever()\n"
    )
    function = await mayfly.ready(script=code, concurrency=2, maxInstances=3)
    served: set[str] = set()

    async def second() -> bool:
        answers = await asyncio.gather(*(mayfly.call(function) for _ in range(12)))
        assert {a.status_code for a in answers} == {200}, [a.text for a in answers]
        served.update(a.json()["me"] for a in answers)
        return len(served) > 1

    await until(second, 20, what="a second instance")
    assert len(served) <= 3
