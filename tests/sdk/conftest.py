"""A platform that answers over real gRPC, and the command line as a process against it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.sdk.platform import FakePlatform, server


@dataclass(frozen=True)
class Done:
    """How a process ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Standard output as one JSON document."""
        return json.loads(self.out)

    @property
    def records(self) -> list[Any]:
        """Standard output as a JSON document a line."""
        return [json.loads(line) for line in self.out.splitlines()]


@dataclass(frozen=True)
class Running:
    """A platform and where it is."""

    platform: FakePlatform
    url: str


Mayfly = Callable[..., Awaitable[Done]]


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    """A platform that serves on a port of its own."""
    platform = FakePlatform()
    serving = server(platform)
    address = await serving.start()
    await serving.health.set_all(True)
    yield Running(platform, f"http://{address}")
    await serving.stop(0)


@pytest.fixture
def mayfly(running: Running) -> Mayfly:
    """Run `mayfly` with arguments against it."""

    async def run(*arguments: str, stdin: str = "", **environment: str) -> Done:
        inherited = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "mayfly.cli.main", *arguments),
            env={**inherited, "MAYFLY_URL": running.url, **environment},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(stdin.encode()), 60)
        assert process.returncode is not None
        return Done(process.returncode, out.decode(), err.decode())

    return run
