"""Brings functions to where their rows want them: claim, look, do the next step, look again."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from datetime import timedelta

import structlog
from mayfly.v1.function_pb2 import LogEvent
from mayfly.v1.source_pb2 import Source

from libs.store import Store, StoreUnavailable
from services.deployer.builds import BuilderUnavailable
from services.deployer.catalog import Catalog
from services.deployer.events import log_event
from services.deployer.rows import FunctionRow, row_of
from services.deployer.steps import Superseded, Tools, Work

log = structlog.get_logger()

_CLAIM_COUNT = 100
_POLL_SECONDS = 5.0
_BACKOFF_SECONDS = (0.1, 3.0)


@dataclass(frozen=True)
class Terms:
    """How a replica claims work."""

    target: str
    replica: str
    claim: timedelta
    concurrent_steps: int


class Reconciler:
    """Runs one task for each function that has a next step and is claimed by this replica."""

    def __init__(
        self,
        store: Store,
        catalog: Catalog,
        tools: Tools,
        terms: Terms,
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._tools = tools
        self._terms = terms
        self._running: dict[str, tuple[int, asyncio.Task[None]]] = {}
        self._ended: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(terms.concurrent_steps)
        self._look = asyncio.Event()
        catalog.observe(self._observe)

    @property
    def busy(self) -> int:
        """Functions that are being worked on."""
        return len(self._running)

    def adopt(self, row: FunctionRow, source: Source | None = None) -> None:
        """Work on a function that this replica has just claimed, at once."""
        running = self._running.get(row.uid)
        if running is not None:
            if running[0] >= row.generation:
                return
            self._stop(row.uid)
        task = asyncio.create_task(self._work(row, source), name=f"reconcile-{row.id}")
        self._running[row.uid] = (row.generation, task)
        task.add_done_callback(lambda done: self._finished(row.uid, done))

    def look(self) -> None:
        """Look for work now: some may have come."""
        self._look.set()

    async def run(self) -> None:
        """Claim work whenever there is some, and keep the claims, until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._claim_forever())
                group.create_task(self._extend_forever())
        finally:
            tasks = [task for _, task in self._running.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, *self._ended, return_exceptions=True)

    async def release(self) -> None:
        """Let others go on at once with what this replica, which ends, had claimed.

        For after `run`, and after what was done has been written. Raises StoreUnavailable.
        """
        async with self._store.connection() as connection:
            await self._store.queries.release_claims(connection, owner=self._terms.replica)

    def _observe(self, row: FunctionRow) -> None:
        if row.ended_time is not None:
            self._stop(row.uid)
            self._tools.reserved.discard(row.uid)
            return
        if not row.settled and row.claim_owner is None:
            self.look()  # there is work, and nobody at it
        running = self._running.get(row.uid)
        if running is not None and row.claim_owner != self._terms.replica and not row.settled:
            self._stop(row.uid)

    def _stop(self, uid: str) -> None:
        _, task = self._running.pop(uid, (0, None))
        if task is not None and task is not asyncio.current_task():
            task.cancel()
            self._ended.add(task)

    def _finished(self, uid: str, task: asyncio.Task[None]) -> None:
        self._ended.discard(task)
        running = self._running.get(uid)
        if running is not None and running[1] is task:
            del self._running[uid]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("reconcile_broke", uid=uid, exc_info=error)

    async def _claim_forever(self) -> None:
        while True:
            try:
                async with asyncio.timeout(_POLL_SECONDS):
                    await self._look.wait()
            except TimeoutError:
                pass
            self._look.clear()
            try:
                while len(await self._claim()) == _CLAIM_COUNT:
                    pass
            except StoreUnavailable as error:
                log.warning("claim_waits_for_store", error=str(error))

    async def _claim(self) -> list[FunctionRow]:
        async with self._store.connection() as connection:
            records = self._store.queries.claim_work(
                connection,
                target=self._terms.target,
                owner=self._terms.replica,
                claim=self._terms.claim,
                busy=list(self._running),
                count=_CLAIM_COUNT,
            )
            rows = [row_of(record) async for record in records]
        self._catalog.update(rows)
        for row in rows:
            self.adopt(row)
        return rows

    async def _extend_forever(self) -> None:
        interval = self._terms.claim.total_seconds() / 3
        while True:
            await asyncio.sleep(interval)
            uids = list(self._running)
            if not uids:
                continue
            try:
                async with self._store.connection() as connection:
                    records = self._store.queries.extend_claims(
                        connection,
                        uids=uids,
                        owner=self._terms.replica,
                        claim=self._terms.claim,
                    )
                    kept = {record["uid"] async for record in records}
            except StoreUnavailable as error:
                log.warning("claims_not_extended", error=str(error))
                continue
            for uid in uids:
                if uid not in kept:
                    self._stop(uid)

    async def _work(self, row: FunctionRow, source: Source | None) -> None:
        """Do one function's steps until there is none; broken ones again, with back-off."""
        least, most = _BACKOFF_SECONDS
        pause = least
        while True:
            try:
                async with self._slots:
                    await Work(self._tools, self._terms.replica, row, source).run()
                return
            except Superseded:
                return
            except (BuilderUnavailable, StoreUnavailable, OSError) as error:
                log.info("step_again", function=row.id, error=str(error), seconds=pause)
                if pause == least:
                    text = f"waiting: {error}"
                    self._tools.journal.put(
                        row.uid, None, [log_event(LogEvent.ORIGIN_PLATFORM, text)]
                    )
            except Exception as error:
                log.error("step_failed", function=row.id, exc_info=error)
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))
            pause = min(most, pause * 2)
            again = await self._reload(row.uid)
            if again is None:
                return
            row, source = again, None

    async def _reload(self, uid: str) -> FunctionRow | None:
        try:
            async with self._store.connection() as connection:
                record = await self._store.queries.claim_one(
                    connection, uid=uid, owner=self._terms.replica, claim=self._terms.claim
                )
        except StoreUnavailable:
            return None  # found again by the next claim
        return row_of(record) if record else None
