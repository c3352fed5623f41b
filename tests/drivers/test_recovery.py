"""kill -9 of anything: nothing is left, and what is asked for again is there again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from services.deployer.drivers import base
from services.deployer.drivers.process.driver import SupervisorUnavailable
from tests.drivers.conftest import Start, World, call, eventually, processes, until_gone

ROOT = Path(__file__).resolve().parents[2]
HELLO = "def handler(event, ctx):\n    return 'hello'\n"
SCRIPT = (
    "from http.server import BaseHTTPRequestHandler, HTTPServer\n"
    "class H(BaseHTTPRequestHandler):\n"
    "    def do_GET(self):\n"
    "        self.send_response(200); self.end_headers(); self.wfile.write(b'script')\n"
    "HTTPServer(('', 8000), H).serve_forever()\n"
)
SPAWNS = (
    "import subprocess, os\n"
    "subprocess.Popen(['/bin/sleep', '600'], start_new_session=True)\n"
    "def handler(e, c):\n    return 'hello'\n"
)


def namespaces(data_dir: Path) -> set[str]:
    """The pid namespaces that this platform's processes live in."""
    found: set[str] = set()
    for process in processes(data_dir):
        with contextlib.suppress(OSError):
            found.add(os.readlink(f"/proc/{process.id}/ns/pid"))
    return found


def all_pid_namespaces() -> set[str]:
    found: set[str] = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                found.add(os.readlink(f"/proc/{name}/ns/pid"))
    return found


def mounts() -> list[str]:
    return Path("/proc/self/mountinfo").read_text().splitlines()


async def until_unmapped(spaces: set[str]) -> None:
    async def gone() -> bool:
        return not all_pid_namespaces() & spaces

    await eventually(gone)


async def fill(world: World) -> dict[str, str]:
    return {
        "a": await world.handler("a", HELLO),
        "b": await world.handler("b", SPAWNS),
        "c": await world.script("c", SCRIPT),
    }


def supervisor_pid(data_dir: Path) -> int:
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            line = Path(f"/proc/{name}/cmdline").read_bytes()
            if b"process.supervisor" in line and str(data_dir).encode() in line:
                return int(name)
    raise AssertionError("no supervisor")


async def is_running(world: World, uid: str) -> bool:
    resources = await world.driver.list_resources()
    return any(r.uid == uid and r.type == "process" for r in resources)


async def zygote_of(world: World) -> base.Resource:
    """The only one; a child looks like it until it has taken a name of its own."""
    found: list[base.Resource] = []

    async def one() -> bool:
        found[:] = [r for r in await world.driver.list_resources() if r.detail == "zygote"]
        return len(found) == 1

    await eventually(one)
    return found[0]


async def test_supervisor_killed(world: World) -> None:
    addresses = await fill(world)
    before, spaces = mounts(), namespaces(world.data_dir)
    old = supervisor_pid(world.data_dir)
    os.kill(old, signal.SIGKILL)
    await world.until(lambda: any(isinstance(n, base.SupervisorLost) for n in world.told))
    await until_unmapped(spaces)
    assert mounts() == before
    workloads = [
        world.workload("a", {"handler.py": HELLO}),
        world.workload("c", {"script.py": SCRIPT}),
    ]
    endpoints = {uid: base.Endpoint(address) for uid, address in addresses.items()}
    await world.driver.restore(workloads, endpoints)
    assert supervisor_pid(world.data_dir) != old
    assert (await call(addresses["a"])).body == b"hello"
    assert (await call(addresses["c"])).body == b"script"
    # What nobody restored is an orphan that the sweep finds by looking.
    orphans = [r for r in await world.driver.list_resources() if r.uid == "b"]
    assert [r.type for r in orphans] == ["socket"]
    await world.driver.remove_resource(orphans[0])
    assert not [r for r in await world.driver.list_resources() if r.uid == "b"]


async def test_zygote_killed(world: World) -> None:
    addresses = await fill(world)
    os.kill(int((await zygote_of(world)).id), signal.SIGKILL)
    stopped = await world.told_of(base.InstanceStopped, "a")
    assert stopped.reason == "zygote-lost"
    assert (await call(addresses["a"])).body == b"hello"
    assert (await call(addresses["c"])).body == b"script"


async def test_instance_killed(world: World) -> None:
    addresses = await fill(world)
    for uid in ("a", "b", "c"):
        instance = next(
            r
            for r in await world.driver.list_resources()
            if r.uid == uid and r.detail.startswith("instance")
        )
        os.kill(int(instance.id), signal.SIGKILL)
        stopped = await world.told_of(base.InstanceStopped, uid)
        assert stopped.exit_code == -9
        assert (await call(addresses[uid])).status == 200


async def test_deployer_killed_leaves_nothing(data_dir: Path) -> None:
    code = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from tests.drivers.conftest import World, ProcessDriver\n"
        "from tests.drivers.test_recovery import fill\n"
        "async def main():\n"
        "    world = World(Path(sys.argv[1]), ProcessDriver(Path(sys.argv[1])))\n"
        "    await fill(world)\n"
        "    print('up', flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(data_dir)],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert child.stdout is not None
    try:
        assert await asyncio.to_thread(child.stdout.readline) == b"up\n"
        spaces = namespaces(data_dir)
        assert len(processes(data_dir)) >= 5
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    await until_gone(data_dir)
    await until_unmapped(spaces)


async def test_two_deployers_share_one_supervisor(start: Start) -> None:
    one = await start()
    two = await start()
    address = await one.handler("a", HELLO)
    again = await two.driver.reserve("a", "handler", None)
    assert again.address == address
    assert await zygote_of(two)
    os.kill(supervisor_pid(one.data_dir), signal.SIGKILL)
    await two.until(lambda: any(isinstance(n, base.SupervisorLost) for n in two.told))
    await two.driver.restore([one.workload("a", {"handler.py": HELLO})], {})
    assert (await call(address)).body == b"hello"


async def test_calls_in_flight_fail_when_the_supervisor_dies(world: World) -> None:
    workload = world.workload("a", {"handler.py": "import time\ntime.sleep(9)\n"})
    deploying = asyncio.create_task(world.deploy(workload))
    await eventually(lambda: is_running(world, "a"))
    os.kill(supervisor_pid(world.data_dir), signal.SIGKILL)
    with pytest.raises(SupervisorUnavailable):
        await deploying


async def test_removal_while_it_starts(world: World) -> None:
    workload = world.workload("a", {"handler.py": "import time\ntime.sleep(9)\n"})
    deploying = asyncio.create_task(world.deploy(workload))
    await eventually(lambda: is_running(world, "a"))
    await world.driver.remove(["a"])
    with pytest.raises(base.DeployFailed):
        await deploying
    assert not [r for r in await world.driver.list_resources() if r.uid == "a"]


async def test_what_is_found_can_be_removed(world: World) -> None:
    await fill(world)
    for resource in await world.driver.list_resources():
        if resource.uid is not None:
            await world.driver.remove_resource(resource)
            await world.driver.remove_resource(resource)

    async def gone() -> bool:
        found = await world.driver.list_resources()
        return not [r for r in found if r.uid is not None]

    await eventually(gone)


async def test_foreign_things_are_not_removed(world: World) -> None:
    """Neither a process that is not ours, whatever the number, nor a file elsewhere."""
    outside = world.data_dir / "kept.sock"
    outside.touch()
    await world.driver.remove_resource(base.Resource("socket", f"unix:{outside}", None, ""))
    assert outside.exists()
    sleeper = subprocess.Popen(["/bin/sleep", "60"])
    try:
        await world.driver.remove_resource(base.Resource("process", str(sleeper.pid), "a", ""))
        assert sleeper.poll() is None
    finally:
        sleeper.kill()
        sleeper.wait()


async def test_starts_that_fail_again_and_again_are_spaced(world: World) -> None:
    workload = world.workload("a", {"handler.py": HELLO}, idle_stop=0.1)
    address = await world.deploy(workload)
    await world.told_of(base.BecameIdle, "a")
    (workload.artefact_dir / "handler.py").write_text("raise OSError('gone')\n")
    answers = [await call(address) for _ in range(4)]
    assert [a.status for a in answers] == [503] * 4
    assert answers[3].seconds > 0.3  # 0.1 s, 0.2 s, 0.4 s
