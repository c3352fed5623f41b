"""A role that one replica has at a time, by a lease in the database."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta

import structlog

from libs.store import Store, StoreUnavailable

log = structlog.get_logger()

LEASE = timedelta(seconds=6)
_KEEP_SECONDS = LEASE.total_seconds() / 3
# Given up this long before others may take it: clocks of two machines run a little apart.
_MARGIN_SECONDS = 1.0


class Role:
    """Takes part in a role: whoever has it works, the others stand by."""

    def __init__(self, store: Store, role: str, replica: str) -> None:
        self._store = store
        self._role = role
        self._replica = replica
        self.held = asyncio.Event()

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do `work` for as long as the role is held, again each time it comes back.

        Ends only when it is cancelled; the role is then free at once.
        """
        try:
            while True:
                if await self._take():
                    await self._hold(work)
                await asyncio.sleep(_KEEP_SECONDS)
        finally:
            await self._leave()

    async def _hold(self, work: Callable[[], Awaitable[None]]) -> None:
        log.info("role_taken", role=self._role)
        loop = asyncio.get_running_loop()
        until = loop.time() + LEASE.total_seconds()
        self.held.set()
        working = asyncio.ensure_future(work())
        try:
            while loop.time() < until - _MARGIN_SECONDS:
                await asyncio.wait([working], timeout=_KEEP_SECONDS)
                if working.done():
                    working.result()
                    return
                begin = loop.time()
                taken = await self._take()
                if taken:
                    until = begin + LEASE.total_seconds()
                elif taken is False:
                    break
            log.warning("role_lost", role=self._role)
        finally:
            self.held.clear()
            working.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.wait([working])

    async def _take(self) -> bool | None:
        """Return whether the role is held now; None where nobody could be asked."""
        try:
            async with self._store.connection() as connection:
                taken = await self._store.queries.take_role(
                    connection, role=self._role, replica=self._replica, lease=LEASE
                )
        except StoreUnavailable as error:
            log.warning("role_not_asked_for", role=self._role, error=str(error))
            return None
        return bool(taken)

    async def _leave(self) -> None:
        try:
            async with self._store.connection() as connection:
                await self._store.queries.leave_role(
                    connection, role=self._role, replica=self._replica
                )
        except StoreUnavailable as error:
            log.warning("role_not_left", role=self._role, error=str(error))
