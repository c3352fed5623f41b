"""Programs that are not of the standard library: Go binaries, environments with packages."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from services.deployer.drivers import base
from tests.drivers.conftest import INTERPRETER, Start, World, call, eventually

TEMPLATE = Path(__file__).resolve().parents[2] / "runtimes" / "go" / "template"

GO = """package main

import (
	"errors"
	"iter"
	"os"
	"time"
)

func Handle(e Event, c Context) (any, error) {
	switch e.Path {
	case "/error":
		return nil, errors.New("no luck")
	case "/panic":
		panic("out of luck")
	case "/slow":
		time.Sleep(time.Minute)
	case "/notjson":
		return make(chan int), nil
	case "/stream":
		return iter.Seq[string](func(yield func(string) bool) {
			_ = yield("one\\n") && yield("two\\n")
		}), nil
	case "/full":
		return Response{Status: 201, Headers: map[string]string{"x-a": "b"}, Body: "text"}, nil
	case "/echo":
		return []byte(e.Body), nil
	}
	return map[string]any{
		"hi": e.Query["name"], "function": c.FunctionID, "request": c.RequestID,
		"method": e.Method, "agent": e.Headers["user-agent"], "pid": os.Getpid(),
	}, nil
}
"""


@pytest.fixture(scope="session")
def go_binary(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    go = shutil.which("go")
    if go is None:
        pytest.skip("no Go toolchain on PATH")
    directory = tmp_path_factory.mktemp("go")
    for path in TEMPLATE.iterdir():
        shutil.copy(path, directory)
    (directory / "function.go").write_text(GO)
    environment = {
        **os.environ,
        "CGO_ENABLED": "0",
        "GOFLAGS": "-mod=mod",
        "GOPROXY": "off",
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
    }
    subprocess.run(
        [go, "build", "-trimpath", "-ldflags=-s", "-o", "out", "."],
        cwd=directory,
        env=environment,
        check=True,
        timeout=110,
    )
    return (directory / "out").read_bytes()


@pytest.mark.needs_go
async def test_go_handler(world: World, go_binary: bytes) -> None:
    workload = world.workload(
        "a",
        {"function": go_binary},
        kind="go_handler",
        interpreter=None,
        idle_stop=0.5,
        timeout=1.0,
    )
    address = await world.deploy(workload)
    answer = await call(
        address, "/x?name=Ann", headers={"x-request-id": "r1", "User-Agent": "test"}
    )
    assert json.loads(answer.body) == {
        "hi": "Ann",
        "function": "fn-a",
        "request": "r1",
        "method": "GET",
        "agent": "test",
        "pid": 1,
    }
    for path, logged in (
        ("/error", "no luck"),
        ("/panic", "out of luck"),
        ("/notjson", "not JSON"),
    ):
        answer = await call(address, path, headers={"x-request-id": "r2"})
        assert answer.status == 500
        assert json.loads(answer.body) == {"error": "internal", "request_id": "r2"}
        await world.logged("a", logged)
    assert (await call(address, "/stream")).body == b"one\ntwo\n"
    full = await call(address, "/full")
    assert (full.status, full.headers["x-a"], full.body) == (201, "b", b"text")
    big = os.urandom(1 << 20)
    assert (await call(address, "/echo", method="POST", body=big)).body == big
    await world.told_of(base.BecameIdle, "a")
    assert (await call(address)).status == 200
    with pytest.raises(OSError):  # noqa: PT011 - however the connection ends
        await call(address, "/slow")
    await world.logged("a", "longer than 1 s")
    assert (await call(address)).status == 200


@pytest.fixture(scope="session")
def fastapi_environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment like the builder's; needs a package index."""
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(os.sys.executable).parent))
    if uv is None:
        pytest.skip("no uv")
    directory = tmp_path_factory.mktemp("environment") / "env"
    subprocess.run(
        [uv, "venv", "-q", "--relocatable", "--python", str(INTERPRETER), str(directory)],
        check=True,
    )
    installed = subprocess.run(
        [
            uv,
            "pip",
            "install",
            "-q",
            "--python",
            str(directory / "bin" / "python"),
            "fastapi",
            "uvicorn[standard]",
        ],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    if installed.returncode:
        pytest.skip(f"the package index cannot be used: {installed.stderr[-200:]}")
    return directory


FASTAPI = """
import os
import uvicorn
from fastapi import FastAPI, WebSocket
app = FastAPI()

@app.get('/')
def root():
    return {'text': TEXT, 'loop': type(__import__('asyncio').new_event_loop()).__module__}

if __name__ == '__main__':
    uvicorn.run(app, host='0.0.0.0', port=8000, loop='uvloop')
"""


def other_interpreters() -> list[Path]:
    home = Path.home() / ".pyenv" / "versions"
    found = [
        next(iter(sorted(home.glob(f"{version}.*/bin/python{version}"))), None)
        for version in ("3.9", "3.10", "3.12", "3.13")
    ]
    return [path.resolve() for path in found if path is not None]


@pytest.mark.parametrize("interpreter", other_interpreters(), ids=lambda path: path.name)
async def test_other_interpreters(world: World, interpreter: Path) -> None:
    code = (
        "import sys, json, asyncio, ssl\n"
        "async def handler(e, c):\n"
        "    await asyncio.sleep(0)\n"
        "    return [sys.version_info[0], sys.version_info[1], sys.path]\n"
    )
    address = await world.handler("a", code, interpreter=interpreter, idle_stop=0.2)
    await world.told_of(base.BecameIdle, "a")
    major, minor, path = json.loads((await call(address)).body)
    assert f"python{major}.{minor}" == interpreter.name
    assert path[0] == "/function"
    assert not [entry for entry in path if "mayfly" in entry or "site-packages" in entry]


async def test_zygotes_without_functions_end(start: Start) -> None:
    if not other_interpreters():
        pytest.skip("one interpreter only")
    interpreter = other_interpreters()[0]
    world = await start(zygote_idle=0.5)
    await world.handler("a", "def handler(e, c): return 1\n", interpreter=interpreter)

    async def zygotes() -> int:
        return sum(r.detail == "zygote" for r in await world.driver.list_resources())

    async def two() -> bool:
        return await zygotes() == 2

    await eventually(two)
    await world.driver.remove(["a"])

    async def one() -> bool:
        return await zygotes() == 1

    await eventually(one)


@pytest.mark.needs_index
async def test_fastapi_with_uvloop(world: World, fastapi_environment: Path) -> None:
    addresses: list[str] = []
    for uid in ("a", "b"):
        workload = world.workload(
            uid,
            {"script.py": f"TEXT = {uid!r}\n{FASTAPI}"},
            environment=fastapi_environment,
            idle_stop=0.6,
            start_timeout=30.0,
            limits=base.Limits(256 << 20, 64, 256, 60),
        )
        endpoint = await world.driver.reserve(uid, "script", None)
        addresses.append(endpoint.address)
        early = asyncio.create_task(call(endpoint.address, seconds=40))
        await world.driver.deploy(workload)
        assert json.loads((await early).body)["text"] == uid
    for uid, address in zip(("a", "b"), addresses, strict=True):
        assert json.loads((await call(address)).body)["text"] == uid
    await world.told_of(base.BecameIdle, "a")
    assert json.loads((await call(addresses[0])).body)["text"] == "a"


@pytest.mark.needs_index
async def test_handler_with_packages(world: World, fastapi_environment: Path) -> None:
    code = (
        "import sys, subprocess, pydantic\n"
        "def handler(e, c):\n"
        "    out = subprocess.run(['python', '-c', 'import fastapi; print(fastapi.__file__)'],\n"
        "                         capture_output=True, text=True)\n"
        "    tool = subprocess.run(['uvicorn', '--version'], capture_output=True, text=True)\n"
        "    return [pydantic.__file__, sys.prefix, out.stdout + out.stderr,\n"
        "            tool.stdout + tool.stderr]\n"
    )
    address = await world.handler("a", code, environment=fastapi_environment)
    file, prefix, other, tool = json.loads((await call(address)).body)
    assert file.startswith("/env/lib/python")
    assert prefix == "/env"
    assert other.startswith("/env/lib/")
    assert tool.startswith("Running uvicorn")
