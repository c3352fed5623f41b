"""Receipts: how one is put together (pure), and the table that keeps them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from mayfly.v1 import janitor_pb2, reclaimer_pb2

from libs.store import Connection, Store
from libs.store.start import Schema
from libs.telemetry.traceparent import trace_id_of

HERE = Path(__file__).parent
SCHEMA = Schema("janitor", HERE / "queries.sql", HERE / "migrations")

Known = Literal["new", "pending", "done"]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Key(NamedTuple):
    """One thing that ends."""

    owner: str
    # `functions/{function}` or `builds/{build}`.
    name: str
    uid: str


@dataclass(slots=True)
class Ending:
    """What the janitor knows of one thing that ends. Times in ns since the epoch."""

    key: Key
    # When it ends, as its owner said last.
    expire_time: int
    # Whether its end is decided already.
    ended: bool = False
    # The W3C traceparent of its trace; empty when it has none.
    traceparent: str = ""
    # Reclaim calls so far.
    attempts: int = 0
    # Begun by a janitor that stopped: the owner may not name it any more.
    recovered: bool = False
    # Its deadline was told anew while it was being reclaimed.
    moved: bool = False
    # What tries that failed have removed.
    removed: list[reclaimer_pb2.Resource] = field(default_factory=list[reclaimer_pb2.Resource])

    @property
    def due(self) -> int:
        """When it is to be reclaimed."""
        return 0 if self.ended else self.expire_time


@dataclass(frozen=True)
class Found:
    """What a look at the world found of one uid."""

    # By the owner that found it, and that alone can remove it.
    residue_by_owner: Mapping[str, Sequence[reclaimer_pb2.Resource]]
    looked_at: Sequence[str]
    # Owners that could not be asked.
    unreachable: Sequence[str] = field(default=())

    @property
    def residue(self) -> list[reclaimer_pb2.Resource]:
        """What was still there."""
        return [resource for found in self.residue_by_owner.values() for resource in found]

    @property
    def clean(self) -> bool:
        """Whether everybody was asked and nothing was found."""
        return not self.residue and not self.unreachable


def receipt_name(resource: str) -> str:
    """Return the receipt's name for a thing's. Example: functions/hello → receipts/hello."""
    return f"receipts/{resource.rpartition('/')[2]}"


def reclaimed_receipt(
    ending: Ending, outcome: reclaimer_pb2.ReclaimOutcome, reclaim_time: int
) -> janitor_pb2.Receipt:
    """Return the receipt of what the owner has removed; nothing is verified yet."""
    expire_time = outcome.expire_time.ToNanoseconds() or ending.expire_time or reclaim_time
    receipt = janitor_pb2.Receipt(
        name=receipt_name(ending.key.name),
        resource=ending.key.name,
        uid=ending.key.uid,
        end_reason=outcome.end_reason,
        removed=_union(ending.removed, outcome.removed),
        kept=outcome.kept,
        attempts=max(ending.attempts, 1),
        trace_id=trace_id_of(outcome.traceparent or ending.traceparent),
    )
    if outcome.HasField("create_time"):
        receipt.create_time.CopyFrom(outcome.create_time)
    receipt.expire_time.FromNanoseconds(expire_time)
    receipt.reclaim_time.FromNanoseconds(reclaim_time)
    receipt.lag.FromNanoseconds(max(reclaim_time - expire_time, 0))
    return receipt


def with_findings(receipt: janitor_pb2.Receipt, found: Found) -> janitor_pb2.Receipt:
    """Return `receipt` with what was looked at and what was still there."""
    checked = janitor_pb2.Receipt()
    checked.CopyFrom(receipt)
    del checked.looked_at[:]
    del checked.residue[:]
    unreachable = [f"{owner}: could not be asked" for owner in found.unreachable]
    checked.looked_at.extend([*found.looked_at, *unreachable])
    checked.residue.extend(found.residue)
    checked.verified = found.clean
    return checked


def merged(old: janitor_pb2.Receipt, new: janitor_pb2.Receipt) -> janitor_pb2.Receipt:
    """Return one receipt for two about the same uid.

    Two janitors, or one before and after a restart, each see a part: what was removed adds up, the
    earlier time counts, and a look that found nothing stands.
    """
    if new.create_time.ToNanoseconds() > old.reclaim_time.ToNanoseconds():
        return new  # the same content was built again: a new life
    both = janitor_pb2.Receipt()
    both.CopyFrom(new)
    for target, first in ((both.removed, old.removed), (both.kept, old.kept)):
        union = _union(first, target)
        del target[:]
        target.extend(union)
    if old.reclaim_time.ToNanoseconds() < new.reclaim_time.ToNanoseconds():
        both.reclaim_time.CopyFrom(old.reclaim_time)
        both.lag.CopyFrom(old.lag)
        both.expire_time.CopyFrom(old.expire_time)
    if not both.HasField("create_time") and old.HasField("create_time"):
        both.create_time.CopyFrom(old.create_time)
    both.end_reason = new.end_reason or old.end_reason
    both.trace_id = new.trace_id or old.trace_id
    both.attempts = max(new.attempts, old.attempts)
    if old.verified and not new.verified:
        both.verified = True
        del both.residue[:]
        del both.looked_at[:]
        both.looked_at.extend(old.looked_at)
    return both


def _union(
    first: Iterable[reclaimer_pb2.Resource], second: Iterable[reclaimer_pb2.Resource]
) -> list[reclaimer_pb2.Resource]:
    by_identity = {(resource.type, resource.id): resource for resource in (*first, *second)}
    return list(by_identity.values())


@dataclass(frozen=True)
class Unfinished:
    """What a janitor that stopped had begun."""

    ending: Ending
    # None: the owner has not said yet that it is removed.
    receipt: janitor_pb2.Receipt | None


@dataclass(frozen=True)
class Position:
    """Where a page of the list begins: after this receipt."""

    reclaim_time: datetime
    uid: str


# Later than every receipt.
FIRST = Position(datetime(9999, 1, 1, tzinfo=UTC), "")


class Receipts:
    """The table of receipts. Every method can raise `StoreUnavailable`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def intend(self, endings: Sequence[Ending]) -> dict[Key, Known]:
        """Note that these are about to be reclaimed; return what was known of each before."""

        async def write() -> list[Any]:
            async with self._store.transaction() as connection:
                return [row async for row in self._intend(connection, endings)]

        rows = await self._store.retrying(write)
        known: dict[tuple[str, str], Known] = {
            (row["resource"], row["uid"]): row["known"] for row in rows
        }
        return {e.key: known.get((e.key.name, e.key.uid), "pending") for e in endings}

    def _intend(self, connection: Connection, endings: Sequence[Ending]) -> Any:
        return self._store.queries.intend(
            connection,
            resources=[e.key.name for e in endings],
            uids=[e.key.uid for e in endings],
            names=[receipt_name(e.key.name) for e in endings],
            owners=[e.key.owner for e in endings],
            deadlines=[_datetime(e.expire_time) for e in endings],
            traceparents=[e.traceparent for e in endings],
        )

    async def discard(self, keys: Sequence[Key]) -> None:
        """Take intentions back; receipts stay."""

        async def write() -> None:
            async with self._store.transaction() as connection:
                await self._store.queries.discard(
                    connection, resources=[k.name for k in keys], uids=[k.uid for k in keys]
                )

        await self._store.retrying(write)

    async def save(self, receipts: Sequence[tuple[Ending, janitor_pb2.Receipt]]) -> None:
        """Write receipts, merged with what is known of the same uid. Idempotent."""
        by_identity = {(r.resource, r.uid): (e, r) for e, r in receipts}

        async def write() -> None:
            async with self._store.transaction() as connection:
                await self._save(connection, by_identity)

        await self._store.retrying(write)

    async def _save(
        self,
        connection: Connection,
        receipts: dict[tuple[str, str], tuple[Ending, janitor_pb2.Receipt]],
    ) -> None:
        rows = dict(receipts)
        identities = list(receipts)
        locked = self._store.queries.lock_receipts(
            connection, resources=[r for r, _ in identities], uids=[u for _, u in identities]
        )
        async for row in locked:
            if row["payload"] is not None:
                identity = (row["resource"], row["uid"])
                ending, receipt = rows[identity]
                old = janitor_pb2.Receipt.FromString(row["payload"])
                rows[identity] = (ending, merged(old, receipt))
        endings = [ending for ending, _ in rows.values()]
        written = [receipt for _, receipt in rows.values()]
        await self._store.queries.save(
            connection,
            resources=[r.resource for r in written],
            uids=[r.uid for r in written],
            names=[r.name for r in written],
            owners=[e.key.owner for e in endings],
            deadlines=[_datetime(e.expire_time) for e in endings],
            traceparents=[e.traceparent for e in endings],
            reclaim_times=[_datetime(r.reclaim_time.ToNanoseconds()) for r in written],
            verified=[r.verified for r in written],
            payloads=[r.SerializeToString() for r in written],
        )

    async def latest(self, name: str) -> janitor_pb2.Receipt | Literal["pending"] | None:
        """Return the newest receipt of `receipts/{id}`; "pending" while it is being made."""
        async with self._store.connection() as connection:
            row = await self._store.queries.latest_receipt(connection, name=name)
        if row is None:
            return None
        return "pending" if row["payload"] is None else _parsed(row)

    async def page(
        self, after: Position, count: int
    ) -> tuple[list[janitor_pb2.Receipt], Position | None]:
        """Return up to `count` receipts after a position, and where the next page begins."""
        async with self._store.connection() as connection:
            found = self._store.queries.list_receipts(
                connection,
                before_time=after.reclaim_time,
                before_uid=after.uid,
                count=count + 1,
            )
            rows = [row async for row in found]
        receipts = [_parsed(row) for row in rows[:count]]
        if len(rows) <= count:
            return receipts, None
        last = rows[count - 1]
        return receipts, Position(last["reclaim_time"], last["uid"])

    async def unfinished(self) -> list[Unfinished]:
        """Return what was begun and not finished, oldest first."""
        async with self._store.connection() as connection:
            return [
                Unfinished(
                    Ending(
                        Key(row["owner"], row["resource"], row["uid"]),
                        _nanoseconds(row["deadline"]),
                        traceparent=row["traceparent"],
                        recovered=True,
                    ),
                    _parsed(row) if row["payload"] is not None else None,
                )
                async for row in self._store.queries.unfinished(connection)
            ]

    async def drop_old(self, retention: timedelta) -> None:
        """Forget what has been kept for `retention`; what is not verified stays."""
        async with self._store.connection() as connection:
            await self._store.queries.drop_old(connection, seconds=retention.total_seconds())

    async def add_sweep(
        self,
        start: datetime,
        end: datetime,
        summary: janitor_pb2.SweepSummary,
        *,
        dry_run: bool,
    ) -> None:
        """Keep how a sweep ended."""
        async with self._store.connection() as connection:
            await self._store.queries.add_sweep(
                connection,
                start_time=start,
                end_time=end,
                dry_run=dry_run,
                found=summary.found,
                removed=summary.removed,
                unreachable=list(summary.unreachable),
            )

    async def last_sweep_time(self) -> datetime | None:
        """Return when the latest sweep ended."""
        async with self._store.connection() as connection:
            return await self._store.queries.last_sweep_time(connection)

    async def ping(self) -> None:
        """Do nothing, in the database."""
        async with self._store.connection() as connection:
            await self._store.queries.ping(connection)


def _parsed(row: Any) -> janitor_pb2.Receipt:
    return janitor_pb2.Receipt.FromString(row["payload"])


def _datetime(nanoseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=nanoseconds // 1000)


def _nanoseconds(time: datetime) -> int:
    return (time - _EPOCH) // timedelta(microseconds=1) * 1000


def timestamp(nanoseconds: int) -> Timestamp:
    """Return ns since the epoch as a Timestamp."""
    made = Timestamp()
    made.FromNanoseconds(nanoseconds)
    return made


def duration(nanoseconds: int) -> Duration:
    """Return ns as a Duration."""
    made = Duration()
    made.FromNanoseconds(nanoseconds)
    return made
