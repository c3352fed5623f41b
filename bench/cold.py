"""Cold start: the first request to a handler of which no instance runs."""

from __future__ import annotations

import time
from collections import deque

from bench.figures import Figure
from bench.http import BenchFailed, Client
from bench.peers import Containers
from bench.submit import HANDLER

SETTLE_SECONDS = 90.0


class IdleHandlers:
    """Handlers in turn: each is called when it is idle, and rests until it is idle again."""

    def __init__(self, client: Client, count: int) -> None:
        self.total = Figure("cold start of an idle handler → 200", bound=1 / 20)
        self.warm = Figure("the same handler, warm")
        self._client = client
        self._resting: deque[str] = deque()
        for number in range(count):
            function_id = f"cold-{number}"
            client.create(function_id, handler=f"{HANDLER}\n# cold {number}\n", ttl="3600s")
            self._resting.append(function_id)

    def run(self) -> None:
        """Call the one that rested longest, cold and then warm."""
        function_id = self._resting.popleft()
        self._await_idle(function_id)
        for figure in (self.total, self.warm):
            began = time.perf_counter()
            self._client.expect("GET", f"/f/{function_id}/")
            figure.add((time.perf_counter() - began) * 1000)
        self._resting.append(function_id)

    def close(self) -> None:
        """Delete the handlers."""
        for function_id in self._resting:
            self._client.delete(function_id)

    def _await_idle(self, function_id: str) -> None:
        deadline = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < deadline:
            found = self._client.get(function_id)
            if found["state"] == "STATE_IDLE" and not found.get("instances"):
                return
            time.sleep(0.05)
        raise BenchFailed(f"{function_id} did not become idle in {SETTLE_SECONDS} s")


class ContainerColdStart:
    """`runc run` of an image that is there and mounted."""

    def __init__(self, containers: Containers | None, missing: str) -> None:
        self.total = Figure("runc run of the handler → 200", missing=missing)
        self._containers = containers
        self._root = containers.prepare(HANDLER) if containers else ""

    def run(self) -> None:
        """Start one container and end it."""
        if self._containers is not None:
            self.total.add(self._containers.cold_start(self._root))
