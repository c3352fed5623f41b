"""What a function is, asked of the deployer, and cold functions woken."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from mayfly.v1.route_pb2 import Route

from services.gateway.errors import Problem

# How long the deployer may take for one answer; whoever has more time asks again.
ASK_SECONDS = 2.0


class Refused(Exception):
    """The request is answered with a problem."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


# Asks the deployer what a function is: its route, or why there is none (`Refused`).
Activate = Callable[[str, float], Awaitable[Route]]


class Activations:
    """Asks about each function once at a time, however many requests wait for the answer."""

    def __init__(self, activate: Activate) -> None:
        self._activate = activate
        self._running: dict[str, asyncio.Task[Route]] = {}

    async def ask(self, function_id: str) -> Route:
        """Return the route as it is; one that is cold is woken. Raises `Refused`.

        A request that goes away meanwhile ends nothing for the others.
        """
        task = self._running.get(function_id)
        if task is None:
            task = asyncio.ensure_future(self._activate(function_id, ASK_SECONDS))
            self._running[function_id] = task
            task.add_done_callback(lambda done: self._ended(function_id, done))
        return await asyncio.shield(task)

    def stop(self) -> None:
        """End what is being asked."""
        for task in self._running.values():
            task.cancel()

    def _ended(self, function_id: str, done: asyncio.Future[Route]) -> None:
        del self._running[function_id]
        if not done.cancelled():
            done.exception()  # seen, even where nobody waits any more
