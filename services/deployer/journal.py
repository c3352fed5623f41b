"""Writes what happens to functions: changes and events of many functions in one statement.

Steps and notifications put what they did here and go on; one task writes all that has gathered
while the write before was under way. Log lines may wait `LOG_DELAY` for more of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import structlog
from mayfly.v1.function_pb2 import LogEvent

from libs.store import Store, StoreUnavailable
from services.deployer.events import LOG, Event, log_event
from services.deployer.rows import FunctionRow, row_of

log = structlog.get_logger()

LOG_DELAY = 0.05
# What nobody waits for may gather company: the steps of a quick deployment become one write.
CHANGE_DELAY = 0.004
LOG_LINES = 1000
"""Lines that are kept of a function."""
_TRIM_AT = 1250
_BATCH = 400  # uids of one notification fit into its 8000 bytes
_EVENTS_A_BATCH = 20_000
_RETRY_SECONDS = 0.5


@dataclass(frozen=True)
class Guard:
    """When a change holds: see `apply_changes`."""

    owner: str | None = None
    mask: int | None = None
    generation: int | None = None


@dataclass
class Change:
    """New values of a row; None leaves the old one. `failure` b"" clears it.

    `again`: what is deployed is made once more, as a generation of its own.
    """

    state: int | None = None
    endpoint: str | None = None
    build: str | None = None
    artefact: bytes | None = None
    failure: bytes | None = None
    serving_spec: bytes | None = None
    ready: int | None = None
    failed: int | None = None
    instances: int | None = None
    held: bool | None = None
    ttl: timedelta | None = None
    idle_timeout: timedelta | None = None
    release: bool | None = None
    again: bool | None = None

    def merge(self, other: Change) -> None:
        """Take what `other` changes too; it came later."""
        for name, value in vars(other).items():
            if value is not None:
                setattr(self, name, value)

    @property
    def silent(self) -> bool:
        """Whether nothing changes that other replicas have to know."""
        return all(value is None for name, value in vars(self).items() if name != "instances")


_COLUMNS = tuple(vars(Change()))
_PARAMETERS = {
    "state": "states", "endpoint": "endpoints", "build": "builds", "artefact": "artefacts",
    "failure": "failures", "serving_spec": "serving_specs", "ready": "ready", "failed": "failed",
    "instances": "instances", "held": "held", "ttl": "ttls", "idle_timeout": "idle_timeouts",
    "release": "releases", "again": "again",
}  # fmt: skip

NO_GUARD = Guard()


@dataclass
class _Record:
    guard: Guard
    change: Change = field(default_factory=Change)
    events: list[Event] = field(default_factory=list[Event])
    logs: int = 0
    dropped: int = 0
    waiters: list[asyncio.Future[FunctionRow | None]] = field(
        default_factory=list[asyncio.Future[FunctionRow | None]]
    )

    @property
    def urgent(self) -> bool:
        return len(self.events) > self.logs or bool(self.waiters) or self.change != Change()


def mask_of(states: Iterable[int]) -> int:
    """Return the bits of `states`."""
    return sum(1 << state for state in states)


class Journal:
    """The one writer of a replica's changes; `run` writes until it is cancelled."""

    def __init__(
        self, store: Store, replica: str, on_rows: Callable[[Sequence[FunctionRow]], None]
    ) -> None:
        self._store = store
        self._replica = replica
        self._on_rows = on_rows
        self._queue: dict[str, list[_Record]] = {}
        self._some = asyncio.Event()
        self._urgent = asyncio.Event()
        self._waited_for = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()

    def put(
        self,
        uid: str,
        change: Change | None = None,
        events: Sequence[Event] = (),
        guard: Guard = NO_GUARD,
    ) -> None:
        """Have a change and events written soon, after all that was put for `uid` before."""
        self._record(uid, change, events, guard)

    async def write(
        self,
        uid: str,
        change: Change | None = None,
        events: Sequence[Event] = (),
        guard: Guard = NO_GUARD,
    ) -> FunctionRow | None:
        """Write, and return the row as it is then; None when the guard did not let it."""
        waiter: asyncio.Future[FunctionRow | None] = asyncio.get_running_loop().create_future()
        self._record(uid, change, events, guard, waiter)
        return await waiter

    def log_lines(self, uid: str, events: Sequence[Event]) -> None:
        """Have log lines written; of those beyond what is kept only the number is."""
        record = self._record(uid, None, (), NO_GUARD)
        room = LOG_LINES - record.logs
        taken = events[: max(0, room)]
        record.events.extend(taken)
        record.logs += len(taken)
        record.dropped += len(events) - len(taken)

    async def drained(self) -> None:
        """Return when all that was put so far is written."""
        await self._empty.wait()

    async def run(self) -> None:
        """Write without end."""
        while True:
            await self._some.wait()
            if not self._urgent.is_set():
                await self._gather()
            elif not self._waited_for.is_set():
                await _until(self._waited_for, CHANGE_DELAY)
            batch = self._take()
            if not batch:
                continue
            rows = await self._write(batch)
            self._done(batch, rows)
            await self._trim([row.uid for row in rows if row.log_lines > _TRIM_AT])

    def _record(
        self,
        uid: str,
        change: Change | None,
        events: Sequence[Event],
        guard: Guard,
        waiter: asyncio.Future[FunctionRow | None] | None = None,
    ) -> _Record:
        records = self._queue.setdefault(uid, [])
        if not records or records[-1].guard != guard:
            records.append(_Record(guard))
        record = records[-1]
        if change is not None:
            record.change.merge(change)
        record.events.extend(events)
        record.logs += sum(event.kind == LOG for event in events)
        if waiter is not None:
            record.waiters.append(waiter)
        self._empty.clear()
        self._some.set()
        if record.urgent:
            self._urgent.set()
        if record.waiters:
            self._waited_for.set()
        return record

    async def _gather(self) -> None:
        await _until(self._urgent, LOG_DELAY)
        await _until(self._waited_for, CHANGE_DELAY)

    def _take(self) -> dict[str, _Record]:
        """Take the first record of each function; its later ones have other guards and wait."""
        batch: dict[str, _Record] = {}
        events = 0
        for uid in list(self._queue):
            records = self._queue[uid]
            batch[uid] = record = records.pop(0)
            events += len(record.events)
            if record.dropped:
                text = f"{record.dropped} lines dropped: written faster than they can be kept"
                record.events.append(log_event(LogEvent.ORIGIN_PLATFORM, text))
                record.logs += 1
            if not records:
                del self._queue[uid]
            if len(batch) == _BATCH or events > _EVENTS_A_BATCH:
                break
        if not self._queue:
            self._some.clear()
            self._urgent.clear()
            self._waited_for.clear()
        return batch

    async def _write(self, batch: dict[str, _Record]) -> list[FunctionRow]:
        parameters = _parameters(batch)
        silent = all(record.change.silent for record in batch.values())
        parameters["flag"] = " e " if silent else " r "
        parameters["replica"] = self._replica

        async def apply() -> list[FunctionRow]:
            async with self._store.connection() as connection:
                query = self._store.queries.apply_changes
                return [row_of(record) async for record in query(connection, **parameters)]

        while True:
            try:
                return await self._store.retrying(apply)
            except StoreUnavailable as error:
                log.warning("journal_waits_for_store", error=str(error), functions=len(batch))
                await asyncio.sleep(_RETRY_SECONDS)

    def _done(self, batch: dict[str, _Record], rows: list[FunctionRow]) -> None:
        self._on_rows(rows)
        written = {row.uid: row for row in rows}
        for uid, record in batch.items():
            for waiter in record.waiters:
                if not waiter.done():
                    waiter.set_result(written.get(uid))
        if not self._queue:
            self._empty.set()

    async def _trim(self, uids: list[str]) -> None:
        if not uids:
            return
        try:
            async with self._store.connection() as connection:
                await self._store.queries.trim_logs(connection, uids=uids, keep=LOG_LINES)
        except StoreUnavailable as error:
            log.warning("trim_put_off", error=str(error))


async def _until(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return


def _parameters(batch: dict[str, _Record]) -> dict[str, Any]:
    uids = sorted(batch)
    records = [batch[uid] for uid in uids]
    parameters: dict[str, Any] = {
        "uids": uids,
        "owners": [record.guard.owner for record in records],
        "masks": [record.guard.mask for record in records],
        "generations": [record.guard.generation for record in records],
        "events": [len(record.events) for record in records],
        "logs": [record.logs for record in records],
    }
    for column in _COLUMNS:
        parameters[_PARAMETERS[column]] = [getattr(record.change, column) for record in records]
    events = [
        (uid, position, event)
        for uid, record in zip(uids, records, strict=True)
        for position, event in enumerate(record.events, 1)
    ]
    parameters["event_uids"] = [uid for uid, _, _ in events]
    parameters["event_positions"] = [position for _, position, _ in events]
    parameters["event_times"] = [event.time for _, _, event in events]
    parameters["event_kinds"] = [event.kind for _, _, event in events]
    parameters["event_payloads"] = [event.payload for _, _, event in events]
    return parameters
