"""Tells those who wait for news of a function that there are some."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterable
from contextlib import contextmanager


class Wakeups:
    """In-process wake-ups by uid; what another replica wrote arrives through `NOTIFY`."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self.closed = False

    @contextmanager
    def watch(self, uid: str) -> Generator[asyncio.Event]:
        """Lend an event that is set when something happens to `uid`."""
        changed = asyncio.Event()
        self._waiting.setdefault(uid, set()).add(changed)
        try:
            yield changed
        finally:
            waiting = self._waiting[uid]
            waiting.discard(changed)
            if not waiting:
                del self._waiting[uid]

    def wake(self, uids: Iterable[str]) -> None:
        """Wake those who watch one of `uids`."""
        if not self._waiting:
            return
        for uid in uids:
            for changed in self._waiting.get(uid, ()):
                changed.set()

    def close(self) -> None:
        """End the waiting of everybody: this replica stops."""
        self.closed = True
        self.wake_all()

    def wake_all(self) -> None:
        """Wake everybody: what happened is not known."""
        self.wake(list(self._waiting))

    @staticmethod
    async def wait(changed: asyncio.Event, seconds: float) -> None:
        """Return when `changed` is set or the time has passed."""
        try:
            async with asyncio.timeout(seconds):
                await changed.wait()
        except TimeoutError:
            return
