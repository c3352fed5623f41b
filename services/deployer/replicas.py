"""What other replicas wrote, by PostgreSQL's notifications."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from datetime import timedelta
from typing import Any

import structlog

from libs.store import Store, StoreUnavailable
from services.deployer.lookup import Lookup
from services.deployer.restoration import Restoration
from services.deployer.rows import FunctionRow
from services.deployer.wakeups import Wakeups

log = structlog.get_logger()

CHANNEL = "mayfly_functions"
_WITHIN = timedelta(seconds=30)
_ACK_SECONDS = 2.0


class Replicas:
    """Tells other replicas what changed, and hears it from them.

    A payload is the writer, a kind, and text. Kinds: "r" routes or deadlines may have changed and
    "e" there are only new events (text: uids, separated by commas), "g" the writer has other
    gateways than before, "w" asks for an answer "a" once the gateways have taken all so far.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        lookup: Lookup,
        restoration: Restoration,
        wakeups: Wakeups,
        on_rows: Callable[[Sequence[FunctionRow]], None],
        look: Callable[[], None],
        written: Callable[[], Awaitable[None]],
        local_taken: Callable[[], Awaitable[str]],
    ) -> None:
        self._store = store
        self._name = name
        self._lookup = lookup
        self._restoration = restoration
        self._wakeups = wakeups
        self._on_rows = on_rows
        self._look = look
        self._written = written
        self._local_taken = local_taken
        self._others: set[str] = set()
        self._questions = itertools.count(1)
        self._answers: dict[str, set[str]] = {}
        self._answered = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()

    async def routes_taken(self) -> str:
        """Wait until the gateways of all replicas have taken all so far, for a bounded time."""
        if not self._others:
            return await self._local_taken()
        mine, theirs = await asyncio.gather(self._local_taken(), self._ask())
        return f"{mine}; {theirs}"

    def announce_gateway(self, gateway: str) -> None:
        """Have it said that a gateway is connected to this replica."""
        self._in_background(self._announce(gateway))

    async def recent_gateways(self) -> list[str]:
        """Return the gateways that were connected a moment ago, perhaps to this replica."""

        async def read() -> list[str]:
            async with self._store.connection() as connection:
                records = self._store.queries.recent_gateways(connection, within=_WITHIN)
                return [record["gateway"] async for record in records]

        return await self._store.retrying(read)

    async def follow(self) -> None:
        """Take in what others wrote, without end."""
        try:
            async for channel, payload in self._store.listen(CHANNEL):
                try:
                    await (self._take(payload) if channel else self._read_all())
                except StoreUnavailable as error:
                    log.warning("notification_lost", error=str(error))
        finally:
            for task in self._tasks:
                task.cancel()

    async def _read_all(self) -> None:
        """What was notified while the connection was away is not known."""
        await self._find_others()
        async for rows in self._restoration.pages():
            self._on_rows(rows)
        self._wakeups.wake_all()
        self._look()

    async def _take(self, payload: str) -> None:
        writer, kind, text = payload.split(" ", 2)
        if writer == self._name:
            return
        if kind in ("r", "e"):
            uids = text.split(",")
            if kind == "r":
                self._on_rows(await self._lookup.by_uids(uids))
            self._wakeups.wake(uids)
        elif kind == "g":
            await self._find_others()
        elif kind == "w":
            self._in_background(self._answer(text))
        elif kind == "a" and text in self._answers:
            async with self._answered:
                self._answers[text].add(writer)
                self._answered.notify_all()

    async def _find_others(self) -> None:
        async with self._store.connection() as connection:
            records = self._store.queries.gateway_replicas(
                connection, replica=self._name, within=_WITHIN
            )
            self._others = {record["replica"] async for record in records}

    async def _ask(self) -> str:
        # What others have to take is notified when it is written, so the question comes after.
        await self._written()
        others = set(self._others)
        question = f"{self._name}/{next(self._questions)}"
        heard = self._answers[question] = set[str]()
        try:
            async with self._store.connection() as connection:
                await self._store.notify(connection, CHANNEL, f"{self._name} w {question}")
            async with asyncio.timeout(_ACK_SECONDS), self._answered:
                await self._answered.wait_for(lambda: heard >= others)
        except TimeoutError:
            # Perhaps it has died with its gateways; the next ones do not wait for it.
            await self._find_others()
        finally:
            del self._answers[question]
        return f"{len(heard)} of {len(others)} other replicas"

    async def _announce(self, gateway: str) -> None:
        async with self._store.connection() as connection:
            queries = self._store.queries
            await queries.seen_gateway(connection, gateway=gateway, replica=self._name)
            await self._store.notify(connection, CHANNEL, f"{self._name} g {gateway}")

    async def _answer(self, question: str) -> None:
        await self._local_taken()
        async with self._store.connection() as connection:
            await self._store.notify(connection, CHANNEL, f"{self._name} a {question}")

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        async def tolerant() -> None:
            try:
                await work
            except StoreUnavailable as error:
                log.warning("other_replicas_not_told", error=str(error))

        task = asyncio.create_task(tolerant())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
