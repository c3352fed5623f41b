"""Deadlines, deaths and restarts."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from libs.rpc.process import StartError
from services.gateway.admin import function_clusters
from tests.gateway.conftest import Running, eventually, running
from tests.gateway.deployer import Deployer, route
from tests.gateway.test_functions import warm
from tests.gateway.upstream import Request, serve


def envoys(directory: Path) -> list[int]:
    """Process ids of Envoys whose configuration is in `directory`."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if str(directory).encode() in command and b"envoy.json" in command:
                found.append(int(entry.name))
    return found


async def refusal_after(gateway: Running, path: str, deadline: float) -> float:
    """Ask again and again; return how long after `deadline` the first refusal came."""
    async with asyncio.timeout(20):
        while True:
            answer = await gateway.http.get(path)
            if answer.status_code != 200:
                assert answer.status_code == 404, answer.text
                assert answer.headers["content-type"] == "application/json"
                return time.time() - deadline
            assert time.time() < deadline + 0.5
            await asyncio.sleep(0.002)


async def test_a_function_ends_at_its_deadline_by_itself(gateway: Running) -> None:
    async with serve(gateway.directory / "f.sock") as upstream:
        short = route("short", upstream.endpoint, ttl=1.5)
        await gateway.deployer.put(short, route("long", upstream.endpoint))
        await warm(gateway, "short")
        deadline = short.expire_time.ToNanoseconds() / 1e9
        assert -0.01 < await refusal_after(gateway, "/f/short/", deadline) < 0.5
        assert (await gateway.http.get("/f/long/")).status_code == 200


async def test_deadlines_hold_while_the_deployer_is_down(gateway: Running) -> None:
    async with serve(gateway.directory / "f.sock") as upstream:
        used = route("used", upstream.endpoint, ttl=2.0)
        unused = route("unused", upstream.endpoint, ttl=2.0)
        await gateway.deployer.put(used, unused, route("long", upstream.endpoint))
        await warm(gateway, "used")
        await gateway.deployer.stop()
        deadline = used.expire_time.ToNanoseconds() / 1e9
        await refusal_after(gateway, "/f/used/", deadline)
        assert (await gateway.http.get("/f/long/")).status_code == 200
        answer = await gateway.http.get("/f/unused/")
        assert answer.status_code == 404
        assert answer.json()["error"]["reason"] == "FUNCTION_ENDED"


async def test_envoy_itself_ends_a_lease_when_control_is_dead(directory: Path) -> None:
    """The control process is stopped, not ended: Envoy would go with it."""
    deployer = Deployer(f"unix:{directory}/d.sock")
    await deployer.start()
    with _Process(directory, deployer.address) as control:
        await deployer.connected()
        async with (
            serve(directory / "f.sock") as upstream,
            httpx.AsyncClient(base_url=control.url, trust_env=False) as http,
        ):
            short = route("short", upstream.endpoint, ttl=2.5)
            await deployer.put(short, route("long", upstream.endpoint))
            for _ in range(2):  # the first is held, after which Envoy has clusters
                await http.get("/f/short/")
                await http.get("/f/long/")
                await deployer.put(*deployer.routes.values())
            os.kill(control.pid, signal.SIGSTOP)
            try:
                deadline = short.expire_time.ToNanoseconds() / 1e9
                assert (await http.get("/f/short/")).status_code == 200
                await asyncio.sleep(deadline - time.time() + 0.05)
                for _ in range(3):  # held by a process that is stopped: no answer, and not 200
                    with pytest.raises(httpx.ReadTimeout):
                        await http.get("/f/short/", timeout=0.2)
                assert (await http.get("/f/long/")).status_code == 200
            finally:
                os.kill(control.pid, signal.SIGCONT)
    await deployer.stop()


async def test_a_renewal_moves_the_deadline_of_a_warm_function(gateway: Running) -> None:
    async with serve(gateway.directory / "f.sock") as upstream:
        await gateway.deployer.put(route("renewed", upstream.endpoint, ttl=1.2))
        await warm(gateway, "renewed")
        later = route("renewed", upstream.endpoint, ttl=2.5)
        await gateway.deployer.put(later)
        deadline = later.expire_time.ToNanoseconds() / 1e9
        assert -0.01 < await refusal_after(gateway, "/f/renewed/", deadline) < 0.5
        # It had ended here, and is renewed after all: it answers again.
        await gateway.deployer.put(route("renewed", upstream.endpoint, ttl=60))
        assert (await gateway.http.get("/f/renewed/")).status_code == 200


async def test_open_streams_survive_the_deployers_restart(gateway: Running) -> None:
    async with serve(gateway.directory / "f.sock") as upstream:
        await gateway.deployer.put(
            route("kept", upstream.endpoint), route("gone", upstream.endpoint)
        )
        await warm(gateway, "kept")
        await warm(gateway, "gone")
        await gateway.deployer.stop()
        assert (await gateway.http.get("/f/kept/")).status_code == 200
        del gateway.deployer.routes["gone"]
        gateway.deployer.ended.add("gone")
        gateway.deployer.version = 1  # counts anew, as another replica may
        await gateway.deployer.start()
        await gateway.deployer.connected()
        await gateway.deployer.put(route("new", upstream.endpoint))
        assert (await gateway.http.get("/f/kept/")).status_code == 200
        assert (await gateway.http.get("/f/new/")).status_code == 200
        assert (await gateway.http.get("/f/gone/")).status_code == 404


async def test_a_question_that_the_deployer_took_along_is_asked_again(gateway: Running) -> None:
    """One of two deployers dies with it; the other, or the next, knows the answer."""
    deployer = gateway.deployer
    deployer.ended.add("over")
    first = asyncio.Event()

    async def asked(_: str) -> None:
        if not first.is_set():
            first.set()
            await asyncio.Event().wait()

    deployer.asked = asked
    waiting = asyncio.create_task(gateway.http.get("/f/over/"))
    await first.wait()
    await deployer.stop()
    await deployer.start()
    answer = await waiting
    assert (answer.status_code, answer.json()["error"]["reason"]) == (404, "FUNCTION_ENDED")
    assert deployer.activations == ["over", "over"]


async def test_envoy_killed_is_back_at_once_with_all_routes(gateway: Running) -> None:
    async with serve(gateway.directory / "f.sock") as upstream:
        names = [f"fn-{number}" for number in range(30)]
        await gateway.deployer.put(*(route(name, upstream.endpoint) for name in names))
        for name in names:
            await warm(gateway, name)
        (before,) = envoys(gateway.directory)
        os.kill(before, signal.SIGKILL)
        began = time.monotonic()
        for name in names:
            while True:
                try:
                    answer = await gateway.http.get(f"/f/{name}/")
                except httpx.TransportError:
                    assert time.monotonic() - began < 5
                    await asyncio.sleep(0.01)
                    continue
                assert answer.status_code == 200
                break
            if name == names[0]:
                assert time.monotonic() - began < 3
        (after,) = envoys(gateway.directory)
        assert after != before
        assert set(await function_clusters(gateway.settings.socket("admin"))) == set(names)
        await gateway.deployer.put(route("more", upstream.endpoint))  # acknowledged again
        await gateway.deployer.remove("fn-0")
        assert (await gateway.http.get("/f/fn-0/")).status_code == 404


async def test_a_killed_gateway_leaves_no_envoy_and_comes_back(directory: Path) -> None:
    deployer = Deployer(f"unix:{directory}/d.sock")
    await deployer.start()
    async with serve(directory / "f.sock") as upstream:
        with _Process(directory, deployer.address) as control:
            await deployer.connected()
            await deployer.put(route("kept", upstream.endpoint))
            assert await _status(f"{control.url}/f/kept/") == 200
            assert len(envoys(directory)) == 1
            os.kill(control.pid, signal.SIGKILL)
            control.process.wait(5)

            async def is_gone() -> bool:
                return not envoys(directory)

            await eventually(is_gone)
            port = control.port
        await deployer.until(lambda: not deployer.gateways)
        with _Process(directory, deployer.address, port=port) as control:
            await deployer.connected()
            assert await _status(f"{control.url}/f/kept/") == 200
    assert envoys(directory) == []
    await deployer.stop()


async def test_a_taken_port_is_named(directory: Path, deployer: Deployer) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(StartError, match=f"MAYFLY_LISTEN: cannot listen on {address}"):
            async with running(directory, deployer, listen=address):
                pass
    assert envoys(directory) == []


async def test_a_missing_envoy_is_named(directory: Path, deployer: Deployer) -> None:
    with pytest.raises(StartError, match="MAYFLY_ENVOY: /nonexistent/envoy"):
        async with running(directory, deployer, envoy="/nonexistent/envoy"):
            pass


def test_the_process_exits_with_a_code_and_a_line(directory: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        ended = _run(directory, {"MAYFLY_LISTEN": listen})
    assert ended.returncode == 3
    assert ended.stderr.startswith(f"MAYFLY_LISTEN: cannot listen on {listen}: ")
    wrong = _run(directory, {"MAYFLY_LISTEN": "nowhere", "MAYFLY_DOMAIN": "UPPER"})
    assert wrong.returncode == 2
    lines = wrong.stderr.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["MAYFLY_LISTEN", "MAYFLY_DOMAIN"]


def _run(directory: Path, settings: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "services.gateway"],
        env={**os.environ, "MAYFLY_DATA_DIR": str(directory), **settings},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


class _Process:
    """`python -m services.gateway` as a process of its own."""

    def __init__(self, directory: Path, deployer: str, port: int = 0) -> None:
        self._directory = directory
        self._deployer = deployer
        self.port = port or _free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> _Process:
        addresses = {
            f"MAYFLY_{name}_ADDRESS": self._deployer for name in ("DEPLOYER", "BUILDER", "JANITOR")
        }
        settings = {
            "MAYFLY_LISTEN": f"127.0.0.1:{self.port}",
            "MAYFLY_DATA_DIR": str(self._directory),
            "MAYFLY_LOG_LEVEL": "ERROR",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "services.gateway"],
            env={**os.environ, **addresses, **settings},
        )
        self.pid = self.process.pid
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(10)


async def _status(url: str) -> int:
    async with httpx.AsyncClient(trust_env=False) as http:
        return (await http.get(url)).status_code


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_a_stop_takes_no_connections_and_lets_requests_end(
    directory: Path, deployer: Deployer
) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def answer(request: Request) -> None:
        request.writer.write(b"HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\n")
        await request.chunk(b"be")
        begun.set()
        await go_on.wait()
        await request.chunk(b"gun")
        request.writer.write(b"0\r\n\r\n")

    async with serve(directory / "f.sock", answer) as upstream, httpx.AsyncClient() as client:
        gateway = running(directory, deployer)
        made = await gateway.__aenter__()
        await deployer.connected()
        await deployer.put(route("f", upstream.endpoint))
        asking = asyncio.create_task(client.get(f"{made.url}/f/f/", timeout=20))
        await begun.wait()
        stopping = asyncio.create_task(gateway.__aexit__(None, None, None))

        async def refuses() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", made.port)) != 0

        await eventually(refuses)
        assert not stopping.done()
        go_on.set()
        assert (await asking).text == "begun"
        await stopping
