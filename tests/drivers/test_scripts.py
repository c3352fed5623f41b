"""Scripts: programs that bind a port of their own choice."""

from __future__ import annotations

import asyncio
import json

import pytest

from services.deployer.drivers import base
from tests.drivers.conftest import World, call, connect

HTTP_SERVER = """
import os
from http.server import BaseHTTPRequestHandler, {kind} as Server

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = b'{text}'
        self.send_response(200)
        self.send_header('content-length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)

print('starting', os.environ['PORT'], os.environ['MAYFLY_FUNCTION'], os.environ['MAYFLY_URL'])
Server(('0.0.0.0', {port}), Handler).serve_forever()
"""


def server(text: str, port: int = 8000, kind: str = "ThreadingHTTPServer") -> str:
    return HTTP_SERVER.format(text=text, port=port, kind=kind)


async def test_two_that_hard_code_the_same_port(world: World) -> None:
    one = await world.script("a", server("one"))
    two = await world.script("b", server("two"))
    assert (await call(one)).body == b"one"
    assert (await call(two)).body == b"two"
    line = await world.logged("a", "starting")
    assert line == "starting 8000 fn-a http://localhost:8080/f/fn-a"


async def test_asyncio_server(world: World) -> None:
    code = (
        "import asyncio\n"
        "async def serve(reader, writer):\n"
        "    await reader.readuntil(b'\\r\\n\\r\\n')\n"
        "    writer.write(b'HTTP/1.1 200 OK\\r\\ncontent-length: 2\\r\\n\\r\\nok')\n"
        "    await writer.drain()\n"
        "    writer.close()\n"
        "async def main():\n"
        "    server = await asyncio.start_server(serve, host=None, port=8000)\n"
        "    await server.serve_forever()\n"
        "asyncio.run(main())\n"
    )
    assert (await call(await world.script("a", code))).body == b"ok"


async def test_requests_wait_while_it_starts_and_wakes(world: World) -> None:
    endpoint = await world.driver.reserve("a", "script", None)
    early = [asyncio.create_task(call(endpoint.address)) for _ in range(4)]
    workload = world.workload("a", {"script.py": server("up")}, idle_stop=0.3)
    await world.driver.deploy(workload)
    assert [a.body for a in await asyncio.gather(*early)] == [b"up"] * 4
    await world.told_of(base.BecameIdle, "a")
    assert (await call(endpoint.address)).body == b"up"


async def test_open_connection_is_not_idle(world: World) -> None:
    code = server("x").replace("body = b'x'", "self.rfile.readline(); body = b'late'")
    address = await world.script("a", code, idle_stop=0.3)
    reader, writer = await connect(address)
    writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
    await world.script("b", server("b"), idle_stop=0.9)
    await world.told_of(base.BecameIdle, "b")
    assert not [n for n in world.told if isinstance(n, base.InstanceStopped) and n.uid == "a"]
    writer.write(b"\n")
    assert b"late" in await reader.readuntil(b"late")
    writer.close()
    await world.told_of(base.BecameIdle, "a")


async def test_address_comes_back(world: World) -> None:
    address = await world.script("a", server("one"))
    await world.driver.remove(["a"])
    again = await world.driver.reserve("a", "script", address)
    assert again.address == address


async def test_health_path(world: World) -> None:
    code = (
        server("ok")
        .replace(
            "self.send_response(200)",
            "import time; self.send_response(200 if self.path != '/up' or "
            "time.monotonic() - T > 0.4 else 500)",
        )
        .replace("import os\n", "import os, time\nT = time.monotonic()\n", 1)
    )
    workload = world.workload("a", {"script.py": code}, health="/up")
    endpoint = await world.driver.reserve("a", "script", None)
    deployed = await world.driver.deploy(workload)
    assert deployed.seconds > 0.4
    assert (await call(endpoint.address)).status == 200


@pytest.mark.parametrize(
    ("code", "reason", "text", "fix"),
    [
        ("print('bye')\nraise SystemExit(3)\n", "SCRIPT_EXITED", "exit code 3", "8000"),
        ("import os\nos.kill(os.getpid(), 11)\n", "SCRIPT_EXITED", "SIGSEGV", "8000"),
        ("import time\ntime.sleep(60)\n", "SCRIPT_NEVER_LISTENED", "8000", "PORT"),
        (server("x", port=9123), "SCRIPT_LISTENS_ELSEWHERE", "9123", "port = 9123"),
        (
            server("x").replace("self.send_response(200)", "self.send_response(500)"),
            "HEALTH_CHECK_FAILED",
            "/up",
            "2xx",
        ),
    ],
)
async def test_failed_deploy_says_why(
    world: World, code: str, reason: str, text: str, fix: str
) -> None:
    slow = reason == "SCRIPT_LISTENS_ELSEWHERE"
    workload = world.workload(
        "a",
        {"script.py": code},
        start_timeout=10.0 if slow else 1.5,
        health="/up" if reason == "HEALTH_CHECK_FAILED" else None,
    )
    with pytest.raises(base.DeployFailed) as caught:
        await world.deploy(workload)
    assert caught.value.reason == reason
    assert text in caught.value.message
    assert fix in caught.value.fix
    if "bye" in code:
        assert "bye" in caught.value.log_tail
        assert caught.value.exit_code == 3


HOSTILE = """
import socket, threading, time
listener = socket.socket()
listener.bind(("0.0.0.0", 8000))
listener.listen()

def keep_blocking():
    while True:
        listener.setblocking(True)

for _ in range(2):
    threading.Thread(target=keep_blocking, daemon=True).start()
while True:
    connection, _ = listener.accept()
    connection.close()
"""


async def test_a_socket_that_is_kept_blocking_stops_nobody(world: World) -> None:
    await world.deploy(world.workload("a", {"script.py": HOSTILE}))
    async with asyncio.timeout(10):
        await world.driver.fail("a", 503, b"{}")
        # The supervisor still works for others.
        address = await world.deploy(world.workload("b", {"script.py": server("b")}))
        assert (await call(address)).status == 200


async def test_other_ports_are_reached_by_itself_only(world: World) -> None:
    """What a script opens beside its port is on loopback, under the number it asked for."""
    code = (
        "import socket, threading\n"
        "extra = socket.create_server(('0.0.0.0', 9555))\n"
        "def serve():\n"
        "    while True:\n"
        "        c, _ = extra.accept()\n"
        "        c.sendall(b'inner'); c.close()\n"
        "threading.Thread(target=serve, daemon=True).start()\n"
    ) + server("x").replace(
        "body = b'x'",
        "import socket; body = socket.create_connection(('127.0.0.1', 9555)).recv(99)",
    )
    address = await world.script("a", code)
    assert (await call(address)).body == b"inner"
    assert (await call(address)).body == b"inner"
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", 9555)


async def test_update_replaces_the_old_one(world: World) -> None:
    address = await world.script("a", server("one"))
    new = world.workload("a", {"script.py": server("two")}, revision=2)
    await world.driver.deploy(new)
    await world.told_of(base.InstanceStopped, "a")
    assert (await call(address)).body == b"two"
    bad = world.workload("a", {"script.py": "raise SystemExit(1)"}, revision=3)
    with pytest.raises(base.DeployFailed):
        await world.driver.deploy(bad)
    assert (await call(address)).body == b"two"


async def test_its_children_end_with_it(world: World) -> None:
    code = (
        "import subprocess, sys\n"
        "p = subprocess.Popen(['/bin/sleep', '600'], start_new_session=True)\n"
    ) + server("x")
    await world.script("a", code)
    before = [r for r in await world.driver.list_resources() if r.uid == "a"]
    assert any("sleep" in r.detail for r in before)
    await world.driver.remove(["a"])
    assert [r for r in await world.driver.list_resources() if r.uid == "a"] == []


async def test_gateway_counts_start_instances(world: World) -> None:
    code = server("x").replace("b'x'", "str(os.stat('/proc/self/ns/pid').st_ino).encode()")
    address = await world.script("a", code, concurrency=2, max_instances=2)
    await world.driver.touch("a", 4)
    await world.until(lambda: sum(isinstance(n, base.InstanceStarted) for n in world.told) == 2)
    await world.driver.touch("a", 40)
    assert (await call(address)).status == 200
    assert sum(isinstance(n, base.InstanceStarted) for n in world.told) == 2


async def test_socket_survives_shutdown_by_the_script(world: World) -> None:
    """A shutdown of the shared socket would end it for every instance."""
    code = (
        "import socket, os\n"
        "from http.server import BaseHTTPRequestHandler, HTTPServer\n"
        "class Handler(BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(200); self.end_headers(); self.wfile.write(b'ok')\n"
        "        if self.path == '/break':\n"
        "            s.socket.shutdown(socket.SHUT_RDWR)\n"
        "            self.wfile.flush(); self.connection.close(); os._exit(1)\n"
        "s = HTTPServer(('', 8000), Handler)\n"
        "s.serve_forever()\n"
    )
    address = await world.script("a", code)
    await call(address, "/break")
    assert (await call(address)).body == b"ok"
    stopped = await world.told_of(base.InstanceStopped, "a")
    assert stopped.reason == "exited"
    await world.logged("a", "exit code 1")


async def test_environment_is_the_users_and_ours(world: World) -> None:
    code = server("x").replace("b'x'", "__import__('json').dumps(dict(os.environ)).encode()")
    answer = await call(await world.script("a", code, env={"KEY": "välue", "PORT": "1"}))
    values = json.loads(answer.body)
    assert values["KEY"] == "välue"
    assert values["PORT"] == "8000"
    assert values["MAYFLY_FUNCTION"] == "fn-a"
    assert not [name for name in values if name.endswith("_FD")]


async def test_no_request_is_lost_however_often_it_is_put_to_sleep(world: World) -> None:
    """Requests that come just when a script that does not handle SIGTERM is stopped."""
    code = server("up", kind="HTTPServer").replace(
        "self.send_response(200)", "import time; time.sleep(0.1); self.send_response(200)"
    )
    address = await world.script("a", code, idle_stop=0.05)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + 6
    count = 0
    while loop.time() < deadline:
        answers = await asyncio.gather(*(call(address) for _ in range(3)))
        assert [a.body for a in answers] == [b"up"] * 3
        count += 1
        # As long as it takes to be found idle, a little more or less each time.
        await asyncio.sleep(0.05 + count % 7 / 500)
    stopped = [n for n in world.told if isinstance(n, base.InstanceStopped)]
    assert len(stopped) > 5
