"""More instances under load, and no more than allowed."""

from __future__ import annotations

import asyncio

from services.deployer.drivers import base
from tests.drivers.conftest import World, call

SLOW = (
    "import os, time\n"
    "def handler(e, c):\n"
    "    time.sleep(0.4)\n"
    "    return str(os.stat('/proc/self/ns/pid').st_ino)\n"
)


def started(world: World) -> int:
    return sum(isinstance(n, base.InstanceStarted) for n in world.told)


async def test_saturation_starts_more_up_to_the_maximum(world: World) -> None:
    address = await world.handler("a", SLOW, concurrency=1, max_instances=3)
    answers = await asyncio.gather(*(call(address) for _ in range(9)))
    assert [a.status for a in answers] == [200] * 9
    assert started(world) == 3
    assert len({a.body for a in answers}) == 3


async def test_room_within_an_instance_is_used_first(world: World) -> None:
    address = await world.handler("a", SLOW, concurrency=8, max_instances=3)
    answers = await asyncio.gather(*(call(address) for _ in range(8)))
    assert len({a.body for a in answers}) == 1
    assert max(a.seconds for a in answers) < 2  # one after the other: 3.2
    assert started(world) == 1


async def test_an_instance_takes_no_more_than_its_concurrency(world: World) -> None:
    code = (
        "import threading, time\n"
        "now = 0; most = 0; lock = threading.Lock()\n"
        "def handler(e, c):\n"
        "    global now, most\n"
        "    with lock:\n"
        "        now += 1; most = max(most, now)\n"
        "    time.sleep(0.05)\n"
        "    with lock: now -= 1\n"
        "    return str(most)\n"
    )
    address = await world.handler("a", code, concurrency=3, max_instances=1)
    answers = await asyncio.gather(*(call(address) for _ in range(15)))
    assert max(int(a.body) for a in answers) == 3


async def test_those_not_needed_any_more_end(world: World) -> None:
    address = await world.handler("a", SLOW, concurrency=1, max_instances=2, idle_stop=0.5)
    await asyncio.gather(*(call(address) for _ in range(4)))
    await world.told_of(base.BecameIdle, "a")
    stopped = [n.reason for n in world.told if isinstance(n, base.InstanceStopped)]
    assert stopped == ["idle", "idle"]
