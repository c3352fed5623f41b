"""Functions that use too much: they are stopped, the log says so, neighbours go on."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from services.deployer.drivers import base
from tests.drivers.conftest import LIMITS, World, call

HELLO = "def handler(event, ctx):\n    return 'hello'\n"


async def test_overdue_request_costs_its_instance_only(world: World) -> None:
    code = (
        "import os\n"
        "def handler(e, c):\n"
        "    while e['path'] == '/loop':\n"
        "        pass\n"
        "    return str(os.stat('/proc/self/ns/pid').st_ino)\n"
    )
    address = await world.handler("a", code, timeout=0.6)
    before = (await call(address)).body
    with pytest.raises(OSError):  # noqa: PT011 - however the connection ends
        await call(address, "/loop")
    await world.logged("a", "longer than 0.6 s")
    stopped = await world.told_of(base.InstanceStopped, "a")
    assert stopped.reason == "timeout"
    after = await call(address)
    assert after.status == 200
    assert after.body != before


async def test_others_in_flight_finish_when_one_is_overdue(world: World) -> None:
    code = (
        "import time\n"
        "def handler(e, c):\n"
        "    time.sleep(60 if e['path'] == '/stuck' else 0.5)\n"
        "    return 'done'\n"
    )
    address = await world.handler("a", code, timeout=0.9)
    stuck = asyncio.create_task(call(address, "/stuck"))
    probe = await world.handler("b", "import time\ndef handler(e, c):\n    time.sleep(0.6)\n")
    await call(probe)  # 0.6 s after the first
    assert (await call(address)).body == b"done"
    with pytest.raises(OSError):  # noqa: PT011
        await stuck


async def test_stuck_in_c_is_ended_too(world: World) -> None:
    """Code that never lets Python run cannot be asked to stop."""
    code = (
        "import re\n"
        "def handler(e, c):\n"
        "    if e['path'] == '/stuck':\n"
        "        re.match(r'(a+)+b', 'a' * 64)\n"
        "    return 'fine'\n"
    )
    address = await world.handler("a", code, timeout=0.5)
    with pytest.raises(OSError):  # noqa: PT011
        await call(address, "/stuck")
    assert (await call(address)).body == b"fine"


async def test_memory_error_is_answered_and_the_instance_replaced(world: World) -> None:
    code = (
        "def handler(e, c):\n"
        "    if e['path'] == '/hog':\n"
        "        return len(bytearray(1 << 30))\n"
        "    return 'fine'\n"
    )
    address = await world.handler("a", code)
    answer = await call(address, "/hog")
    assert answer.status == 500
    await world.logged("a", "out of memory")
    stopped = await world.told_of(base.InstanceStopped, "a")
    assert stopped.reason == "memory"
    assert (await call(address)).body == b"fine"


async def test_memory_of_many_processes_is_counted_together(world: World) -> None:
    code = (
        "import os, time\n"
        "def handler(e, c):\n"
        "    if e['path'] == '/hog':\n"
        "        for _ in range(6):\n"
        "            if os.fork() == 0:\n"
        "                kept = bytearray(60 << 20)\n"
        "                for i in range(0, len(kept), 4096): kept[i] = 1\n"
        "                time.sleep(60)\n"
        "        time.sleep(60)\n"
        "    return 'fine'\n"
    )
    address = await world.handler("a", code)
    other = await world.handler("b", HELLO)
    with pytest.raises(OSError):  # noqa: PT011
        await call(address, "/hog")
    await world.logged("a", "used more than 192 MiB of memory")
    assert (await world.told_of(base.InstanceStopped, "a")).reason == "memory"
    assert (await call(address)).body == b"fine"
    assert (await call(other)).body == b"hello"


async def test_full_scratch_space(world: World) -> None:
    code = (
        "def handler(e, c):\n"
        "    try:\n"
        "        with open('/tmp/big', 'wb') as f:\n"
        "            for _ in range(200): f.write(bytes(1 << 20))\n"
        "    except OSError as error:\n"
        "        return error.strerror\n"
    )
    assert (await call(await world.handler("a", code))).body == b"No space left on device"


async def test_fork_bomb(world: World) -> None:
    code = (
        "import os, time\n"
        "def handler(e, c):\n"
        "    n = 0\n"
        "    try:\n"
        "        while True:\n"
        "            if os.fork() == 0:\n"
        "                time.sleep(30)\n"
        "                os._exit(0)\n"
        "            n += 1\n"
        "    except OSError as error:\n"
        "        return f'{error.strerror} after {n}'\n"
    )
    limits = base.Limits(512 << 20, 20, 256, 60)
    address = await world.handler("a", code, limits=limits)
    other = await world.handler("b", HELLO)
    body = (await call(address)).body.decode()
    assert body.startswith("Resource temporarily unavailable after ")
    assert int(body.split()[-1]) < 20
    assert (await call(other)).body == b"hello"
    await world.driver.remove(["a"])
    assert [r for r in await world.driver.list_resources() if r.uid == "a"] == []


async def test_open_files(world: World) -> None:
    code = (
        "import os\n"
        "def handler(e, c):\n"
        "    fds = []\n"
        "    try:\n"
        "        while True: fds.append(os.open('/dev/null', 0))\n"
        "    except OSError as error:\n"
        "        for fd in fds: os.close(fd)\n"
        "        return error.strerror\n"
    )
    assert (await call(await world.handler("a", code))).body == b"Too many open files"


async def test_cpu_time(world: World) -> None:
    code = (
        "import time\n"
        "def handler(e, c):\n"
        "    while e['path'] == '/burn' and time.process_time() < 1.6: pass\n"
        "    return 'fine'\n"
    )
    limits = base.Limits(LIMITS.memory_bytes, 64, 256, 1.0)
    address = await world.handler("a", code, limits=limits)
    assert (await call(address, "/burn")).status == 200
    stopped = await world.told_of(base.InstanceStopped, "a")
    assert stopped.reason == "cpu"
    assert (await call(address)).body == b"fine"


CLOSE_ALL = """
        for fd in range(3, 60):
            try: os.close(fd)
            except OSError: pass
"""


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("os._exit(9)", "exit code 9"),
        ("os.kill(os.getpid(), 9)", None),  # the first process of a namespace cannot
        ("ctypes.string_at(0)", "SIGSEGV"),
        (CLOSE_ALL, "ended"),
    ],
)
async def test_broken_by_itself(world: World, code: str, said: str | None) -> None:
    handler = (
        "import ctypes, os\n"
        "def handler(e, c):\n"
        "    if e['path'] == '/die':\n"
        f"        {code}\n"
        "    return 'fine'\n"
    )
    address = await world.handler("a", handler)
    with contextlib.suppress(OSError, TimeoutError):
        await call(address, "/die", seconds=2)
    if said is not None:
        await world.logged("a", said)
    assert (await call(address)).body == b"fine"
