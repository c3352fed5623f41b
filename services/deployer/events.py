"""What happens to a function, as events: how they are made, kept and read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from mayfly.v1.error_pb2 import ErrorReason
from mayfly.v1.function_pb2 import (
    EndReason,
    FunctionEvent,
    LeaseEvent,
    LogEvent,
    StageEvent,
    State,
    StateEvent,
    TailLogsResponse,
)
from mayfly.v1.source_pb2 import Failure, Stage

from libs.rpc.errors import MayflyError
from libs.store import Store
from services.deployer.rows import ENDED, RUNNABLE
from services.deployer.view import timestamp
from services.deployer.wakeups import Wakeups

STAGE, LOG, STATE, FAILURE, LEASE = 1, 2, 3, 4, 5
PAGE = 500
# A wake-up that got lost costs a watcher this many seconds, not the stream.
LOOK_AGAIN_SECONDS = 10.0
DEFAULT_TAIL = 100


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened; the payload is the serialized message of its kind."""

    time: datetime
    kind: int
    payload: bytes


def utcnow() -> datetime:
    """Return the time of this machine, with its zone."""
    return datetime.now(UTC)


def state_event(
    state: State.ValueType,
    end_reason: EndReason.ValueType = EndReason.END_REASON_UNSPECIFIED,
    time: datetime | None = None,
) -> Event:
    """The state changed."""
    message = StateEvent(state=state, end_reason=end_reason)
    return Event(time or utcnow(), STATE, message.SerializeToString())


def stage_event(
    stage: Stage.ValueType,
    progress: StageEvent.Progress.ValueType,
    *,
    duration: timedelta | None = None,
    detail: str = "",
    time: datetime | None = None,
) -> Event:
    """A stage started or ended."""
    message = StageEvent(stage=stage, progress=progress, detail=detail)
    if duration is not None:
        message.duration.FromTimedelta(duration)
    return Event(time or utcnow(), STAGE, message.SerializeToString())


def log_event(
    origin: LogEvent.Origin.ValueType,
    text: str,
    *,
    instance: str = "",
    time: datetime | None = None,
) -> Event:
    """A line was written."""
    message = LogEvent(origin=origin, text=text, instance=instance)
    return Event(time or utcnow(), LOG, message.SerializeToString())


def lost_image(build: str) -> str:
    """The log's line for an image that somebody has removed."""
    return f"the image of {build} is not in the registry any more; it is made again"


def failure_event(failure: Failure, time: datetime | None = None) -> Event:
    """It failed."""
    return Event(time or utcnow(), FAILURE, failure.SerializeToString())


def lease_event(expire_time: datetime, time: datetime | None = None) -> Event:
    """The deadline changed."""
    micros = int(expire_time.timestamp() * 1_000_000)
    return Event(time or utcnow(), LEASE, str(micros).encode())


def message_of(sequence: int, time: datetime, kind: int, payload: bytes) -> FunctionEvent:
    """Return an event as it is kept as the message that watchers get."""
    event = FunctionEvent(sequence=sequence, time=timestamp(time))
    if kind == STAGE:
        event.stage.CopyFrom(StageEvent.FromString(payload))
    elif kind == LOG:
        event.log.CopyFrom(LogEvent.FromString(payload))
    elif kind == STATE:
        event.state.CopyFrom(StateEvent.FromString(payload))
    elif kind == FAILURE:
        event.failure.CopyFrom(Failure.FromString(payload))
    else:
        # Microseconds since the epoch as text: a renewal is one statement, and writes it in SQL.
        event.lease.CopyFrom(LeaseEvent(expire_time=Timestamp()))
        event.lease.expire_time.FromMicroseconds(int(payload))
    return event


def is_settled(record: Any) -> bool:
    """Whether nothing is under way: it answers, failed, or has ended."""
    if record["state"] in ENDED or record["overdue"]:
        return True
    worked = max(record["ready_generation"], record["failed_generation"])
    settled_state = record["state"] in RUNNABLE or record["state"] == State.STATE_FAILED
    return settled_state and record["generation"] <= worked


async def watch(
    store: Store, wakeups: Wakeups, uid: str, after: int, *, until_settled: bool
) -> AsyncIterator[FunctionEvent]:
    """Yield a function's events after one, live, until it is reclaimed (or settled)."""
    with wakeups.watch(uid) as changed:
        while True:
            changed.clear()
            records = await _page(store, "events_after", uid, after)
            if not records:
                return
            for record in _present(records):
                after = record["sequence"]
                yield message_of(after, record["time"], record["kind"], record["payload"])
            last = records[-1]
            if after < last["event_sequence"] and last["sequence"] is not None:
                continue
            if last["state"] == State.STATE_RECLAIMED or (until_settled and is_settled(last)):
                return
            await _until_news(wakeups, changed)


async def tail_logs(
    store: Store, wakeups: Wakeups, uid: str, tail: int, *, follow: bool
) -> AsyncIterator[TailLogsResponse]:
    """Yield the last `tail` lines, then, with `follow`, new ones until the function has ended."""
    left = tail or DEFAULT_TAIL
    async with store.connection() as connection:
        after = await store.queries.log_start(connection, uid=uid, tail=left) or 0
    with wakeups.watch(uid) as changed:
        while True:
            changed.clear()
            records = await _page(store, "logs_after", uid, after)
            if not records:
                return
            for record in _present(records):
                after = record["sequence"]
                yield TailLogsResponse(
                    time=timestamp(record["time"]),
                    log=LogEvent.FromString(record["payload"]),
                    sequence=after,
                )
                left -= 1
                if not follow and not left:
                    return  # what has been written since is not asked for
            if len(records) == PAGE:
                continue
            if not follow or records[-1]["state"] == State.STATE_RECLAIMED:
                return
            await _until_news(wakeups, changed)


async def _until_news(wakeups: Wakeups, changed: asyncio.Event) -> None:
    await wakeups.wait(changed, LOOK_AGAIN_SECONDS)
    if wakeups.closed:
        raise MayflyError(
            ErrorReason.ERROR_REASON_UNAVAILABLE,
            "this deployer stops",
            fix="call again; a watch goes on after the last sequence seen",
        )


async def _page(store: Store, query: str, uid: str, after: int) -> list[Any]:
    async def read() -> list[Any]:
        async with store.connection() as connection:
            select = getattr(store.queries, query)
            return [r async for r in select(connection, uid=uid, after=after, count=PAGE)]

    return await store.retrying(read)


def _present(records: list[Any]) -> Iterable[Any]:
    return (record for record in records if record["sequence"] is not None)
