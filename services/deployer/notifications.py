"""What the driver says about functions: states, instance counts, log lines."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import structlog
from mayfly.v1.build_pb2 import Artefact
from mayfly.v1.function_pb2 import Function, LogEvent, State

from libs.store import Store
from services.deployer.drivers.base import (
    BecameActive,
    BecameIdle,
    Driver,
    Endpoint,
    InstanceStarted,
    InstanceStopped,
    LogLine,
    Notification,
    SupervisorLost,
    Workload,
)
from services.deployer.effective import workload_of
from services.deployer.events import log_event, state_event
from services.deployer.journal import Change, Guard, Journal, mask_of
from services.deployer.rows import RUNNABLE, FunctionRow, row_of
from services.deployer.view import Viewpoint

log = structlog.get_logger()

_PAGE = 500
_AGAIN_SECONDS = 0.5
_ORIGINS = {
    "stdout": LogEvent.ORIGIN_STDOUT,
    "stderr": LogEvent.ORIGIN_STDERR,
    "platform": LogEvent.ORIGIN_PLATFORM,
}
_RUNNABLE = Guard(mask=mask_of(RUNNABLE))
_WAS_READY = Guard(mask=mask_of([State.STATE_READY]))
_WAS_IDLE = Guard(mask=mask_of([State.STATE_IDLE]))
# Ends of an instance that are everyday matters and need no line in the logs.
_ORDINARY = frozenset({"idle", "removed", "replaced"})


class Instances:
    """Keeps rows true to what runs."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._running: dict[str, set[str]] = {}

    def take(self, notification: Notification) -> None:
        """Record what a notification says."""
        match notification:
            case LogLine(uid=uid, instance=instance, stream=stream, time=time, text=text):
                line = log_event(_ORIGINS[stream], text, instance=instance, time=_time(time))
                self._journal.log_lines(uid, [line])
            case InstanceStarted(uid=uid, instance=instance):
                self._running.setdefault(uid, set()).add(instance)
                self._count(uid)
            case InstanceStopped(uid=uid, instance=instance, reason=reason, exit_code=code):
                running = self._running.get(uid, set())
                running.discard(instance)
                if not running:
                    self._running.pop(uid, None)
                self._count(uid)
                if reason not in _ORDINARY:
                    text = f"instance ended: {reason}{_exit(code)}"
                    line = log_event(LogEvent.ORIGIN_PLATFORM, text, instance=instance)
                    self._journal.log_lines(uid, [line])
            case BecameIdle(uid=uid):
                event = state_event(State.STATE_IDLE)
                change = Change(state=State.STATE_IDLE, instances=0)
                self._journal.put(uid, change, [event], _WAS_READY)
            case BecameActive(uid=uid):
                event = state_event(State.STATE_READY)
                self._journal.put(uid, Change(state=State.STATE_READY), [event], _WAS_IDLE)
            case SupervisorLost():
                self._running.clear()

    def _count(self, uid: str) -> None:
        count = len(self._running.get(uid, ()))
        self._journal.put(uid, Change(instances=count), (), _RUNNABLE)


class Restoration:
    """Gives the driver back what it has to run, from rows."""

    def __init__(
        self,
        store: Store,
        driver: Driver,
        journal: Journal,
        viewpoint: Viewpoint,
        target: str,
        reserved: set[str],
        on_rows: Callable[[Sequence[FunctionRow]], None],
    ) -> None:
        self._store = store
        self._driver = driver
        self._journal = journal
        self._viewpoint = viewpoint
        self._target = target
        self._reserved = reserved
        self._on_rows = on_rows

    async def restore(self) -> int:
        """Restore every function that lives and has an address; return how many.

        Raises what the driver raises; all of it may be repeated.
        """
        count = 0
        async for rows in self.pages():
            self._on_rows(rows)
            live = [row for row in rows if not row.ended and row.endpoint]
            workloads = [w for row in live if (w := self._workload(row)) is not None]
            endpoints = {w.uid: Endpoint(_endpoint(live, w.uid)) for w in workloads}
            if workloads:
                await self._driver.restore(workloads, endpoints)
                self._reserved.update(endpoints)
            count += len(workloads)
        return count

    async def pages(self):
        """Yield all rows that are not tombstones, a page at a time."""
        after = ""
        while True:
            async with self._store.connection() as connection:
                records = self._store.queries.unreclaimed_functions(
                    connection, target=self._target, after=after, count=_PAGE
                )
                rows = [row_of(record) async for record in records]
            if rows:
                yield rows
                after = rows[-1].uid
            if len(rows) < _PAGE:
                return

    def _workload(self, row: FunctionRow) -> Workload | None:
        if not row.serving_artefact or row.ready_generation == 0:
            return None
        artefact = Artefact.FromString(row.serving_artefact)
        if not Path(artefact.directory).is_dir():
            # Its files are gone: it is built and deployed again, behind the same address.
            log.warning("artefact_missing", function=row.id, directory=artefact.directory)
            self._journal.put(row.uid, Change(ready=0), (), _RUNNABLE)
            return None
        spec = Function.FromString(row.serving_spec or row.spec)
        return workload_of(
            row.id, row.uid, row.ready_generation, spec, artefact,
            self._viewpoint.url(row.id), self._viewpoint.defaults,
        )  # fmt: skip


async def follow(
    driver: Driver, instances: Instances, on_lost: Callable[[], Awaitable[None]]
) -> None:
    """Take the driver's notifications without end; call `on_lost` when it has lost everything."""
    async for notification in driver.notifications():
        instances.take(notification)
        if isinstance(notification, SupervisorLost):
            log.warning("driver_lost", message=notification.message)
            await on_lost()


async def until_done(work: Callable[[], Awaitable[object]], what: str) -> None:
    """Do `work` until it succeeds."""
    while True:
        try:
            await work()
            return
        except Exception as error:
            log.error("try_again", what=what, exc_info=error)
            await asyncio.sleep(_AGAIN_SECONDS)


def _endpoint(rows: Sequence[FunctionRow], uid: str) -> str:
    return next(row.endpoint for row in rows if row.uid == uid)


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _exit(code: int | None) -> str:
    if code is None:
        return ""
    return f" (signal {-code})" if code < 0 else f" (exit code {code})"
