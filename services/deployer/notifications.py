"""What the driver says about functions: states, instance counts, log lines."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from datetime import UTC, datetime

import structlog
from mayfly.v1.function_pb2 import LogEvent, State

from services.deployer.drivers.base import (
    ArtefactLost,
    BecameActive,
    BecameIdle,
    Driver,
    EndpointMoved,
    InstanceStarted,
    InstanceStopped,
    LogLine,
    Notification,
    Reconciled,
    SupervisorLost,
    Wanted,
)
from services.deployer.events import log_event, state_event
from services.deployer.journal import Change, Guard, Journal, mask_of
from services.deployer.rows import RUNNABLE

log = structlog.get_logger()

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

    def begin(self) -> None:
        """Know of no instance: the driver tells of all that run."""
        self._running.clear()

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
            case EndpointMoved(uid=uid, endpoint=endpoint):
                self._journal.put(uid, Change(endpoint=str(endpoint)), (), _RUNNABLE)
            case Reconciled(uid=uid, text=text):
                line = log_event(LogEvent.ORIGIN_PLATFORM, text)
                self._journal.put(uid, None, [line], _RUNNABLE)
            case ArtefactLost(uid=uid, text=text):
                line = log_event(LogEvent.ORIGIN_PLATFORM, text)
                # As an update of the same source: what still runs answers until the new one does.
                self._journal.put(uid, Change(again=True, artefact=b""), [line], _RUNNABLE)
            case SupervisorLost():
                self._running.clear()

    def _count(self, uid: str) -> None:
        count = len(self._running.get(uid, ()))
        self._journal.put(uid, Change(instances=count), (), _RUNNABLE)


async def follow(
    driver: Driver,
    instances: Instances,
    wanted: Wanted,
    on_lost: Callable[[], Awaitable[None]],
) -> None:
    """Take the driver's notifications without end; call `on_lost` when it has lost everything."""
    instances.begin()
    async with aclosing(driver.notifications(wanted)) as notifications:
        async for notification in notifications:
            instances.take(notification)
            if isinstance(notification, SupervisorLost):
                log.warning("driver_lost", message=notification.message)
                await on_lost()


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _exit(code: int | None) -> str:
    if code is None:
        return ""
    return f" (signal {-code})" if code < 0 else f" (exit code {code})"
