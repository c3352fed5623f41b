"""Handlers as processes: deployed, called, put to sleep, woken, replaced, removed."""

from __future__ import annotations

import asyncio
import json

import pytest

from services.deployer.drivers import base
from tests.drivers.conftest import World, call, connect

HELLO = "def handler(event, ctx):\n    return {'hi': event['query'].get('name')}\n"


async def test_answers(world: World) -> None:
    address = await world.handler("a", HELLO)
    answer = await call(address, "/x?name=Ann")
    assert answer.status == 200
    assert json.loads(answer.body) == {"hi": "Ann"}


async def test_requests_wait_from_before_there_is_an_instance(world: World) -> None:
    endpoint = await world.driver.reserve("a", "handler", None)
    early = [asyncio.create_task(call(endpoint.address, f"/?name={i}")) for i in range(8)]
    workload = world.workload("a", {"handler.py": HELLO})
    await world.driver.deploy(workload)
    answers = await asyncio.gather(*early)
    assert [json.loads(a.body)["hi"] for a in answers] == [str(i) for i in range(8)]


async def test_sleeps_and_wakes_without_losing_a_request(world: World) -> None:
    address = await world.handler("a", HELLO, idle_stop=0.2)
    await world.told_of(base.BecameIdle, "a")
    answers = await asyncio.gather(*(call(address, "/?name=x") for _ in range(6)))
    assert [a.status for a in answers] == [200] * 6
    stopped = await world.told_of(base.InstanceStopped, "a")
    assert stopped.reason == "idle"


async def test_open_stream_is_not_idle(world: World) -> None:
    code = (
        "import threading\n"
        "go = threading.Event()\n"
        "def handler(event, ctx):\n"
        "    if event['path'] == '/go':\n"
        "        go.set()\n"
        "        return 'went'\n"
        "    def items():\n"
        "        yield 'first'\n"
        "        go.wait(8)\n"
        "        yield 'last'\n"
        "    return items()\n"
    )
    # The time limit ends where the response begins: the stream outlives it.
    address = await world.handler("a", code, idle_stop=0.2, timeout=0.5)
    reader, writer = await connect(address)
    writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
    await reader.readuntil(b"first\r\n")
    other = await world.handler("b", HELLO, idle_stop=0.5)
    await world.told_of(base.BecameIdle, "b")  # more than twice the idle time of the first
    assert not [n for n in world.told if isinstance(n, base.InstanceStopped) and n.uid == "a"]
    await call(address, "/go")
    await reader.readuntil(b"last\r\n0\r\n\r\n")
    writer.close()
    await world.told_of(base.BecameIdle, "a")
    assert (await call(other)).status == 200


async def test_minimum_is_kept(world: World) -> None:
    await world.handler("a", HELLO, idle_stop=0.1, min_instances=1)
    await world.handler("b", HELLO, idle_stop=0.3)
    await world.told_of(base.BecameIdle, "b")
    assert not [n for n in world.told if isinstance(n, base.InstanceStopped) and n.uid == "a"]


async def test_update_moves_when_the_new_one_is_ready(world: World) -> None:
    address = await world.handler("a", "def handler(e, c):\n    return 'one'\n")
    assert (await call(address)).body == b"one"
    new = world.workload("a", {"handler.py": "def handler(e, c):\n    return 'two'\n"}, revision=2)
    await world.driver.deploy(new)
    stopped = await world.told_of(base.InstanceStopped, "a")
    assert stopped.reason == "replaced"
    assert (await call(address)).body == b"two"


async def test_update_that_fails_leaves_the_old_one(world: World) -> None:
    address = await world.handler("a", "def handler(e, c):\n    return 'one'\n")
    bad = world.workload("a", {"handler.py": "import nothing_like_this\n"}, revision=2)
    with pytest.raises(base.DeployFailed) as caught:
        await world.driver.deploy(bad)
    assert caught.value.reason == "HANDLER_IMPORT_FAILED"
    assert "nothing_like_this" in caught.value.message
    assert any('File "/function/handler.py", line 1' in line for line in caught.value.log_tail)
    assert (await call(address)).body == b"one"


@pytest.mark.parametrize(
    ("code", "reason", "text"),
    [
        ("raise ValueError('no luck')\n", "HANDLER_IMPORT_FAILED", "ValueError: no luck"),
        ("raise SystemExit(3)\n", "HANDLER_IMPORT_FAILED", "SystemExit: 3"),
        ("x = 1\n", "HANDLER_MISSING", "handler"),
        ("import os\nos._exit(7)\n", "INSTANCE_START_FAILED", "exit code 7"),
        ("while True: pass\n", "HANDLER_IMPORT_FAILED", "longer than 0.5 s"),
    ],
)
async def test_failed_deploy_says_why(world: World, code: str, reason: str, text: str) -> None:
    workload = world.workload("a", {"handler.py": code}, start_timeout=0.5)
    with pytest.raises(base.DeployFailed) as caught:
        await world.deploy(workload)
    assert caught.value.reason == reason
    assert text in caught.value.message
    assert caught.value.fix


async def test_failed_function_answers_who_waits(world: World) -> None:
    endpoint = await world.driver.reserve("a", "handler", None)
    waiting = [asyncio.create_task(call(endpoint.address)) for _ in range(3)]
    other = await world.handler("b", HELLO)  # by now the three are in the backlog
    await world.driver.fail("a", 503, b'{"error": {"stage": "build"}}')
    for answer in await asyncio.gather(*waiting):
        assert answer.status == 503
        assert json.loads(answer.body)["error"]["stage"] == "build"
    with pytest.raises(OSError):  # noqa: PT011 - refused or no such file, both are right
        await call(endpoint.address)
    assert (await call(other)).status == 200


async def test_import_that_fails_on_waking_is_answered(world: World) -> None:
    """The module worked when it was deployed and does not now."""
    code = (
        "import time\n"
        "if time.time() % 4 < 2:\n"
        "    pass\n"
        "import os\n"
        "def handler(e, c):\n"
        "    return 'fine'\n"
    )
    workload = world.workload("a", {"handler.py": code}, idle_stop=0.1)
    address = await world.deploy(workload)
    await world.told_of(base.BecameIdle, "a")
    (workload.artefact_dir / "handler.py").write_text("raise OSError('gone')\n")
    answer = await call(address)
    assert answer.status == 503
    assert json.loads(answer.body)["error"]["reason"] == "HANDLER_IMPORT_FAILED"
    (workload.artefact_dir / "handler.py").write_text(code)
    assert (await call(address)).body == b"fine"


async def test_removal_is_complete_and_can_be_repeated(world: World) -> None:
    address = await world.handler("a", HELLO)
    removed = (await world.driver.remove(["a"]))["a"]
    assert {r.type for r in removed} == {"process", "socket"}
    assert await world.driver.remove(["a", "never-was"]) == {"a": [], "never-was": []}
    assert [r for r in await world.driver.list_resources() if r.uid == "a"] == []
    with pytest.raises(FileNotFoundError):
        await call(address)


async def test_logs_of_both_streams(world: World) -> None:
    code = (
        "import sys\n"
        "def handler(e, c):\n"
        "    print('to out')\n"
        "    print('to err', file=sys.stderr)\n"
        "    sys.stdout.write('x' * 20000 + '\\n')\n"
    )
    await call(await world.handler("a", code))
    await world.logged("a", "to err")
    await world.logged("a", "to out")
    await world.until(lambda: sum(line.count("x") for line in world.logs("a")) == 20000)
    assert max(len(line) for line in world.logs("a")) <= 8192


async def test_endless_output_harms_nobody(world: World) -> None:
    code = "def handler(e, c):\n    while True:\n        print('spam' * 20)\n"
    address = await world.handler("a", code, timeout=2.5)
    other = await world.handler("b", HELLO)
    caller = asyncio.create_task(call(address))
    await world.logged("a", "lines dropped")
    quick = await call(other)
    assert quick.status == 200
    assert quick.seconds < 2
    with pytest.raises(OSError):  # noqa: PT011 - however the connection ends
        await caller
    assert sum(len(line) for line in world.logs("a")) < 2_000_000
