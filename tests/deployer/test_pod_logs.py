"""Followers of containers' logs, where whoever passes the lines on lets go without an error.

Only that is played here: a real API server or kubelet does so when it restarts, and cannot be made
to for one test.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any, cast

from libs.kube.kinds import Kind, Manifest
from services.deployer.drivers.base import LogLine
from services.deployer.drivers.cluster.logs import LogStreams
from services.deployer.drivers.cluster.world import World

POD_NAME = "fn-1-abc"


def pod(state: str) -> Manifest:
    """A function's pod with one container in a state."""
    status = {
        "name": "function",
        "restartCount": 0,
        "state": {state: {"startedAt": "2026-01-01T00:00:00Z"}},
    }
    return {
        "metadata": {
            "name": POD_NAME,
            "uid": "1",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"mayfly.dev/uid": "u"},
        },
        "spec": {"containers": [{"name": "function"}]},
        "status": {"containerStatuses": [status]},
    }


class Passing:
    """A cluster whose log streams end, by turns, behind these lines."""

    def __init__(self, *turns: list[str]) -> None:
        self.turns = list(turns)
        self.asked = 0
        self.pod: Manifest | None = pod("running")
        self.settings = SimpleNamespace(namespace="functions")

    @property
    def cluster(self) -> Passing:
        return self

    def one(self, kind: Kind, name: str) -> Manifest | None:
        assert (kind.name, name) == ("Pod", POD_NAME)
        return self.pod

    async def logs(self, *where: str, **how: Any) -> AsyncGenerator[str]:
        self.asked += 1
        turn = self.turns.pop(0)
        if not self.turns:
            self.pod = pod("terminated")
        for line in turn:
            yield line


async def read(passing: Passing) -> list[str]:
    """All lines, until the follower is done."""
    told: list[LogLine] = []
    streams = LogStreams(cast("World", passing), told.append)
    streams.take(pod("running"))
    (task,) = streams._streams.values()  # pyright: ignore[reportPrivateUsage]
    async with asyncio.timeout(5):
        await task
    await streams.close()
    return [line.text for line in told]


async def test_a_stream_that_ends_while_its_container_runs_is_opened_again() -> None:
    one, two, three = (f"2026-01-01T00:00:0{n}.000000001Z {n}" for n in range(3))
    passing = Passing([one, two], [one, two, three])
    assert await read(passing) == ["0", "1", "2"]
    assert passing.asked == 2


async def test_a_stream_that_ends_with_its_container_is_not() -> None:
    passing = Passing(["2026-01-01T00:00:00Z 0"])
    assert await read(passing) == ["0"]
    assert passing.asked == 1
