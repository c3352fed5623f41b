"""Who waits for a build is woken when something has happened to it."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Generator
from contextlib import aclosing, contextmanager

from libs.store import Store

BUILDS = "mayfly_builds"
QUEUE = "mayfly_build_queue"


class Changes:
    """Wakes waiters of this process, and, through PostgreSQL, those of other replicas."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiters: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        # Set when a build may be waiting for a worker.
        self.queue = asyncio.Event()
        # Set when a deadline may have moved.
        self.deadlines = asyncio.Event()

    @contextmanager
    def expect(self, build: str) -> Generator[asyncio.Event]:
        """Lend an event that is set whenever something happens to the build from now on."""
        event = asyncio.Event()
        self._waiters[build].add(event)
        try:
            yield event
        finally:
            self._waiters[build].discard(event)
            if not self._waiters[build]:
                del self._waiters[build]

    def tell(self, build: str) -> None:
        """Wake the waiters of this process."""
        for event in self._waiters.get(build, ()):
            event.set()

    async def listen(self) -> None:
        """Pass on what other replicas tell, without end."""
        async with aclosing(self._store.listen(BUILDS, QUEUE)) as notifications:
            async for channel, payload in notifications:
                if channel == BUILDS:
                    self.tell(payload)
                    continue
                self.queue.set()
                if not channel:
                    # Connected anew: what was told meanwhile is not known.
                    for build in list(self._waiters):
                        self.tell(build)
