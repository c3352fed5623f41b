"""A real supervisor on a data directory of its own, and the means to call functions."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from services.deployer.drivers import base
from services.deployer.drivers.process import residue
from services.deployer.drivers.process.driver import ProcessDriver

LIMITS = base.Limits(memory_bytes=192 << 20, processes=64, open_files=256, cpu_seconds=60)
INTERPRETER = Path(os.path.realpath(sys.executable))


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float


@dataclass
class World:
    """One driver with its data directory, and what it has told."""

    data_dir: Path
    driver: ProcessDriver
    told: list[base.Notification] = field(default_factory=list[base.Notification])
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    _count: int = 0

    def workload(self, uid: str, files: Mapping[str, str | bytes], **values: Any) -> base.Workload:
        """A handler or script out of `files`; the first one is the entry."""
        self._count += 1
        directory = self.data_dir / "artefacts" / f"{uid}-{self._count}"
        directory.mkdir(parents=True)
        for name, content in files.items():
            path = directory / name
            path.write_bytes(content.encode() if isinstance(content, str) else content)
            path.chmod(0o755)
        entry = next(iter(files))
        kind: base.Kind = "script" if entry.startswith("script") else "handler"
        workload = base.Workload(
            function_id=f"fn-{uid}",
            uid=uid,
            revision=1,
            kind=kind,
            artefact_dir=directory,
            entry=entry,
            interpreter=INTERPRETER,
            environment=None,
            env={},
            port=8000,
            health=None,
            timeout=10.0,
            start_timeout=10.0,
            idle_stop=30.0,
            concurrency=4,
            min_instances=0,
            max_instances=3,
            url=f"http://localhost:8080/f/fn-{uid}",
            limits=LIMITS,
        )
        return replace(workload, **values)

    async def handler(self, uid: str, code: str, **values: Any) -> str:
        """Deploy a handler; its address."""
        return await self.deploy(self.workload(uid, {"handler.py": code}, **values))

    async def script(self, uid: str, code: str, **values: Any) -> str:
        return await self.deploy(self.workload(uid, {"script.py": code}, **values))

    async def deploy(self, workload: base.Workload) -> str:
        endpoint = await self.driver.reserve(workload.uid, workload.kind, None)
        await self.driver.deploy(workload)
        return endpoint.address

    def logs(self, uid: str) -> list[str]:
        return [n.text for n in self.told if isinstance(n, base.LogLine) and n.uid == uid]

    async def until(self, condition: Callable[[], bool], seconds: float = 10.0) -> None:
        """Wait until something that is told makes `condition` true."""
        async with asyncio.timeout(seconds), self.changed:
            await self.changed.wait_for(condition)

    async def told_of(self, kind: type[Any], uid: str, seconds: float = 10.0) -> Any:
        """The first notification of a kind for a function."""

        def found() -> list[Any]:
            return [n for n in self.told if isinstance(n, kind) and n.uid == uid]

        await self.until(lambda: bool(found()), seconds)
        return found()[0]

    async def logged(self, uid: str, text: str, seconds: float = 10.0) -> str:
        await self.until(lambda: any(text in line for line in self.logs(uid)), seconds)
        return next(line for line in self.logs(uid) if text in line)

    async def listen(self) -> None:
        async for notification in self.driver.notifications(_nothing_wanted):
            async with self.changed:
                self.told.append(notification)
                self.changed.notify_all()


async def connect(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if address.startswith("unix:"):
        return await asyncio.open_unix_connection(address.removeprefix("unix:"))
    return await asyncio.open_connection("127.0.0.1", int(address.rpartition(":")[2]))


async def call(
    address: str,
    path: str = "/",
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
    seconds: float = 15.0,
) -> Answer:
    """One request on a connection of its own."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    lines = [f"{method} {path} HTTP/1.1", "host: test", "connection: close"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    if body:
        lines.append(f"content-length: {len(body)}")
    async with asyncio.timeout(seconds):
        reader, writer = await connect(address)
        try:
            writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
            await writer.drain()
            raw = await reader.read()
        finally:
            writer.close()
    if not raw:
        raise ConnectionResetError("closed without an answer")
    head, _, rest = raw.partition(b"\r\n\r\n")
    first, *more = head.decode().split("\r\n")
    fields = {k.lower(): v for k, _, v in (line.partition(": ") for line in more)}
    if fields.get("transfer-encoding") == "chunked":
        rest = unchunk(rest)
    return Answer(int(first.split()[1]), fields, rest, loop.time() - started)


def unchunk(raw: bytes) -> bytes:
    body = b""
    while raw:
        size, _, raw = raw.partition(b"\r\n")
        if int(size, 16) == 0:
            return body
        body += raw[: int(size, 16)]
        raw = raw[int(size, 16) + 2 :]
    raise AssertionError("the stream was cut off")


def processes(data_dir: Path) -> list[base.Resource]:
    return residue.find_processes(residue.marker_of(data_dir))


async def eventually(condition: Callable[[], Awaitable[bool]], seconds: float = 5.0) -> None:
    """Look until it is so; for what the kernel does by itself and tells nobody."""
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110 - the kernel sets no event
            await asyncio.sleep(0.01)


async def until_gone(data_dir: Path, seconds: float = 5.0) -> None:
    """The kernel ends a pid namespace a moment after its first process."""

    async def gone() -> bool:
        return not processes(data_dir)

    await eventually(gone, seconds)


@pytest.fixture
def data_dir() -> Any:
    # Not tmp_path: a unix socket's path has room for 107 bytes.
    path = Path(tempfile.mkdtemp(prefix="mayfly-test-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


Start = Callable[..., Awaitable[World]]


@pytest.fixture
async def start(data_dir: Path) -> AsyncIterator[Start]:
    """Start a driver; what it leaves behind fails the test."""
    worlds: list[tuple[World, asyncio.Task[None]]] = []

    async def make(**values: Any) -> World:
        world = World(data_dir, ProcessDriver(data_dir, **values))
        await world.driver.start()
        worlds.append((world, asyncio.create_task(world.listen())))
        return world

    yield make
    for world, task in reversed(worlds):
        await world.driver.close()
        task.cancel()
    await until_gone(data_dir)


@pytest.fixture
async def world(start: Start) -> World:
    return await start()


async def _nothing_wanted(uid: str) -> base.Workload | None:
    """Nothing is put right here: the supervisor's world has no other hands in it."""
    return None
