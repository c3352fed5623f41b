"""What other replicas wrote, by PostgreSQL's notifications."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing
from datetime import timedelta
from typing import Any

import structlog

from libs.store import Store, StoreUnavailable
from services.deployer.lookup import Lookup
from services.deployer.restoration import Restoration
from services.deployer.rows import FunctionRow
from services.deployer.wakeups import Wakeups

log = structlog.get_logger()

Inventories = tuple[dict[str, list[str]], list[str]]
"""Functions by gateway, and the gateways that did not answer."""

CHANNEL = "mayfly_functions"
_WITHIN = timedelta(seconds=30)
_ACK_SECONDS = 2.0


class Replicas:
    """Tells other replicas what changed, and hears it from them.

    A payload is the writer, a kind, and text. Kinds: "r" routes or deadlines may have changed and
    "e" there are only new events (text: uids, separated by commas), "g" the writer has other
    gateways than before, "w" asks for an answer "a" once the gateways have taken all so far, "i"
    for one once the functions in the gateways' Envoys are written down.
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
        local_inventories: Callable[[], Awaitable[Inventories]],
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
        self._local_inventories = local_inventories
        self._others: set[str] = set()
        self._questions = itertools.count(1)
        self._answers: dict[str, set[str]] = {}
        self._answered = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()

    async def routes_taken(self) -> str:
        """Wait until the gateways of all replicas have taken all so far, for a bounded time."""
        if not self._others:
            return await self._local_taken()
        mine, (heard, asked) = await asyncio.gather(self._local_taken(), self._ask("w"))
        return f"{mine}; {len(heard)} of {len(asked)} other replicas"

    async def inventories(self) -> Inventories:
        """Return the functions in the Envoys of all replicas' gateways, and who did not answer."""
        if not self._others:
            return await self._local_inventories()
        question = self._question()
        (found, silent), (heard, asked) = await asyncio.gather(
            self._local_inventories(), self._ask("i", question)
        )
        async with self._store.connection() as connection:
            records = self._store.queries.take_inventories(connection, question=question)
            async for record in records:
                if record["function_ids"] is None:
                    silent.append(record["gateway"])
                else:
                    found[record["gateway"]] = record["function_ids"]
        return found, [*silent, *(f"the gateways of {replica}" for replica in asked - heard)]

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
            async with aclosing(self._store.listen(CHANNEL)) as notifications:
                async for channel, payload in notifications:
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
        elif kind == "i":
            self._in_background(self._answer_inventories(text))
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

    def _question(self) -> str:
        return f"{self._name}/{next(self._questions)}"

    async def _ask(self, kind: str, question: str = "") -> tuple[set[str], set[str]]:
        """Ask the other replicas; return which of them answered in time, and which were asked."""
        # What others have to take is notified when it is written, so the question comes after.
        await self._written()
        others = set(self._others)
        question = question or self._question()
        heard = self._answers[question] = set[str]()
        try:
            async with self._store.connection() as connection:
                await self._store.notify(connection, CHANNEL, f"{self._name} {kind} {question}")
            async with asyncio.timeout(_ACK_SECONDS), self._answered:
                await self._answered.wait_for(lambda: heard >= others)
        except TimeoutError:
            # Perhaps it has died with its gateways; the next ones do not wait for it.
            await self._find_others()
        finally:
            del self._answers[question]
        return heard, others

    async def _announce(self, gateway: str) -> None:
        async with self._store.connection() as connection:
            queries = self._store.queries
            await queries.seen_gateway(connection, gateway=gateway, replica=self._name)
            await self._store.notify(connection, CHANNEL, f"{self._name} g {gateway}")

    async def _answer_inventories(self, question: str) -> None:
        found, silent = await self._local_inventories()
        # Several gateways may have one name for a moment, when one has just taken another's place.
        told = {**found, **dict.fromkeys(silent)}
        async with self._store.transaction() as connection:
            for gateway, ids in told.items():
                await self._store.queries.write_inventory(
                    connection, question=question, gateway=gateway, function_ids=ids
                )
            await self._store.notify(connection, CHANNEL, f"{self._name} a {question}")

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
