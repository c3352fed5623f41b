"""Functions that misbehave: an error for their caller, the cause in their logs, no harm done."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from tests.conformance.door import Door, Json, problem_of, until

WELL = "def handler(event, ctx):\n    return 'well'\n"


@asynccontextmanager
async def neighbour(mayfly: Door) -> AsyncIterator[Json]:
    """A function that must answer all the while, and quickly."""
    function = await mayfly.ready(handler=WELL)
    slowest = 0.0
    calls = 0
    failures: list[str] = []

    async def watch() -> None:
        nonlocal slowest, calls
        while True:
            began = time.monotonic()
            answer = await mayfly.call(function)
            slowest = max(slowest, time.monotonic() - began)
            calls += 1
            if answer.status_code != 200:
                failures.append(f"{answer.status_code} {answer.text}")
            await asyncio.sleep(0.05)

    task = asyncio.create_task(watch())
    try:
        yield function
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert failures == []
    assert calls
    assert slowest < 5.0


def bad_when_asked(deed: str, head: str = "") -> str:
    """Return a handler that does `deed` when called with `?bad`, and is well otherwise."""
    return (
        f"{head}\n"
        "def handler(event, ctx):\n"
        "    if 'bad' in event['query']:\n"
        f"        {deed}\n"
        "    return 'well'\n"
    )


async def recovers(mayfly: Door, function: Json, seconds: float = 20) -> None:
    """Wait until the function answers again."""

    async def probe() -> bool:
        answer = await mayfly.call(function)
        return answer.status_code == 200

    await until(probe, seconds, what="a good answer afterwards", every=0.1)


DEEDS = {
    "exits": ("os._exit(3)", "import os", {502}, r"(?i)exit|ended|status 3|code 3"),
    "leaves by sys.exit": ("sys.exit('bye')", "import sys", {500, 502}, r"SystemExit|bye|exit"),
    "aborts": ("os.abort()", "import os", {502}, r"(?i)signal|SIGABRT|ended|exit|fault"),
    "closes every descriptor": ("os.closerange(3, 1024)", "import os", {500, 502, 504}, r"."),
    "loops without end": (
        "exec('while True: pass')",
        "",
        {504},
        r"(?i)timeout|deadline|longer|replaced",
    ),
    "recurses without end": ("f()", "def f():\n    return f()", {500, 502}, r"(?i)recursion|ended"),
    "segfaults": (
        "ctypes.string_at(0)",
        "import ctypes",
        {502},
        r"(?i)signal|SIGSEGV|ended|exit|fault",
    ),
    "takes all memory": (
        "x = [bytearray(16 << 20) for _ in range(10_000)]",
        "",
        {500, 502, 503},
        r"(?i)memory",
    ),
}


@pytest.mark.parametrize("deed", DEEDS)
async def test_misdeeds_hurt_nobody_else(mayfly: Door, deed: str) -> None:
    what, head, statuses, logged = DEEDS[deed]
    async with neighbour(mayfly):
        function = await mayfly.ready(
            handler=bad_when_asked(what, head),
            timeout="3s",
            maxInstances=1,
            resources={"memoryBytes": str(256 << 20)},
        )
        answer = await mayfly.call(function, "?bad", timeout=30)
        assert answer.status_code in statuses, (answer.status_code, answer.text)
        assert answer.headers["content-type"].startswith("application/json"), answer.text
        assert answer.json()["error"]
        await mayfly.log_holding(function, logged)
        await recovers(mayfly, function)


async def test_an_answer_that_broke_off_names_its_reason(mayfly: Door) -> None:
    function = await mayfly.ready(handler=bad_when_asked("os._exit(1)", "import os"))
    problem = problem_of(await mayfly.call(function, "?bad"))
    assert (problem.http, problem.reason) == (502, "FUNCTION_BROKE_OFF"), problem
    assert problem.fix


async def test_a_fork_bomb_is_contained(mayfly: Door, on_cluster: bool) -> None:
    code = (
        "import os, time\n"
        "def handler(event, ctx):\n"
        "    if 'bad' not in event['query']:\n        return 'well'\n"
        "    made = 0\n"
        "    stop = time.monotonic() + 2\n"
        "    while time.monotonic() < stop:\n"
        "        try:\n"
        "            if os.fork() == 0:\n"
        "                while time.monotonic() < stop:\n"
        "                    try:\n"
        "                        os.fork()\n"
        "                    except OSError:\n"
        "                        time.sleep(0.05)\n"
        "                os._exit(0)\n"
        "            made += 1\n"
        "        except OSError:\n"
        "            return {'stopped_after': made}\n"
        "    return {'made': made}\n"
    )
    async with neighbour(mayfly):
        function = await mayfly.ready(
            handler=code, timeout="10s", maxInstances=1, resources={"processes": 32}
        )
        answer = await mayfly.call(function, "?bad", timeout=40)
        assert answer.status_code in {200, 500, 502, 503, 504}, answer.text
        # On a cluster the node's limit counts, which is one for all its pods and a larger one.
        if answer.status_code == 200 and not on_cluster:
            assert answer.json()["stopped_after"] <= 32
        await recovers(mayfly, function)
        await mayfly.delete(function)
    assert await mayfly.verified_receipt(function)


async def test_children_that_were_left_behind_end_with_the_function(mayfly: Door) -> None:
    code = (
        "import subprocess, sys\n"
        "def handler(event, ctx):\n"
        "    subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'],\n"
        "                     start_new_session=True)\n"
        "    return 'left one'\n"
    )
    function = await mayfly.ready(handler=code)
    answer = await mayfly.call(function)
    assert answer.status_code == 200, answer.text
    await mayfly.delete(function)
    receipt = await mayfly.verified_receipt(function)
    assert not receipt.get("residue")


async def test_memory_of_many_processes_is_bounded_together(mayfly: Door) -> None:
    code = (
        "import os, time\n"
        "def handler(event, ctx):\n"
        "    if 'bad' not in event['query']:\n        return 'well'\n"
        "    for _ in range(8):\n"
        "        if os.fork() == 0:\n"
        "            x = bytearray(100 << 20)\n"
        "            time.sleep(30)\n"
        "            os._exit(0)\n"
        "    time.sleep(20)\n"
        "    return 'kept it all'\n"
    )
    async with neighbour(mayfly):
        function = await mayfly.ready(
            handler=code,
            timeout="15s",
            maxInstances=1,
            resources={"memoryBytes": str(256 << 20)},
        )
        answer = await mayfly.call(function, "?bad", timeout=40)
        assert answer.text.strip('"') != "kept it all"
        await recovers(mayfly, function)


async def test_open_files_are_bounded(mayfly: Door) -> None:
    code = (
        "def handler(event, ctx):\n"
        "    kept = []\n"
        "    try:\n"
        "        while len(kept) < 100_000:\n            kept.append(open('/dev/null'))\n"
        "    except OSError:\n        pass\n"
        "    return {'opened': len(kept)}\n"
    )
    function = await mayfly.ready(handler=code, resources={"openFiles": 128})
    assert (await mayfly.call(function)).json()["opened"] < 128


async def test_tmp_is_bounded(mayfly: Door) -> None:
    code = (
        "import os\n"
        "def handler(event, ctx):\n"
        "    size = 0\n"
        "    try:\n"
        "        with open('/tmp/big', 'wb') as f:\n"
        "            while size < 4 << 30:\n"
        "                size += f.write(b'x' * (1 << 20))\n"
        "    except OSError:\n        pass\n"
        "    os.unlink('/tmp/big')\n"
        "    return {'size': size}\n"
    )
    function = await mayfly.ready(handler=code, resources={"memoryBytes": str(512 << 20)})
    answer = await mayfly.call(function, timeout=60)
    if answer.status_code == 200:
        assert answer.json()["size"] < 4 << 30
    else:
        assert answer.status_code in {500, 502}, answer.text
    await recovers(mayfly, function)


async def test_a_script_that_dies_is_started_again(mayfly: Door) -> None:
    code = (
        "# /// script\n# dependencies = []\n# ///\n"
        "import http.server, os\n"
        "class Server(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        if self.path == '/die':\n            os._exit(7)\n"
        "        self.send_response(200)\n        self.end_headers()\n"
        "http.server.ThreadingHTTPServer(('0.0.0.0', 8000), Server).serve_forever()\n"
    )
    async with neighbour(mayfly):
        function = await mayfly.ready(script=code)
        answer = await mayfly.call(function, "/die")
        assert (answer.status_code, problem_of(answer).reason) == (502, "FUNCTION_BROKE_OFF")
        await recovers(mayfly, function)
        await mayfly.log_holding(function, r"7")


async def test_a_function_that_answers_no_http_is_502(mayfly: Door) -> None:
    code = (
        "# /// script\n# dependencies = []\n# ///\n"
        "import socketserver\n"
        "class Server(socketserver.StreamRequestHandler):\n"
        "    def handle(self):\n        self.wfile.write(b'this is no HTTP\\r\\n\\r\\n')\n"
        "socketserver.ThreadingTCPServer(('0.0.0.0', 8000), Server).serve_forever()\n"
    )
    function = await mayfly.ready(script=code)
    problem = problem_of(await mayfly.call(function))
    assert problem.http == 502, problem
    assert problem.fix


async def test_clients_that_go_away_do_not_use_an_instance_up(mayfly: Door) -> None:
    code = "import time\ndef handler(event, ctx):\n    time.sleep(1)\n    return 'well'\n"
    function = await mayfly.ready(handler=code, concurrency=2, maxInstances=1)
    for _ in range(6):
        with pytest.raises(httpx.ReadTimeout):
            await mayfly.call(function, timeout=0.05)
    answer = await mayfly.call(function)
    assert answer.status_code == 200
