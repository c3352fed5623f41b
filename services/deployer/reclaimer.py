"""ReclaimerService: what functions there are until when, and how they end."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any

import structlog
from mayfly.v1.function_pb2 import EndReason, Function, StageEvent, State
from mayfly.v1.reclaimer_pb2 import (
    Deadline,
    ListResourcesRequest,
    ListResourcesResponse,
    ReclaimOutcome,
    ReclaimRequest,
    ReclaimResponse,
    ReclaimTarget,
    Resource,
    WatchDeadlinesRequest,
    WatchDeadlinesResponse,
)
from mayfly.v1.reclaimer_pb2_grpc import ReclaimerServiceServicer
from mayfly.v1.source_pb2 import Stage
from opentelemetry.trace import Tracer

from libs.store import Store
from services.deployer import events
from services.deployer.builds import BuilderUnavailable, Builds
from services.deployer.catalog import Catalog
from services.deployer.drivers.base import Driver, DriverUnavailable, still_there
from services.deployer.drivers.base import Resource as Found
from services.deployer.events import utcnow
from services.deployer.lookup import Lookup
from services.deployer.replicas import Inventories
from services.deployer.rows import ENDED, FunctionRow, row_of
from services.deployer.spans import end_root, span_of
from services.deployer.view import timestamp

log = structlog.get_logger()

CHUNK = 500
_BATCH = 400  # uids of one notification fit into its 8000 bytes
_REASONS: dict[int, str] = {
    EndReason.END_REASON_TTL: "ttl",
    EndReason.END_REASON_IDLE: "idle",
    EndReason.END_REASON_DELETED: "deleted",
}
_EXPIRED = events.state_event(State.STATE_EXPIRED, EndReason.END_REASON_TTL).payload
_IDLE = events.state_event(State.STATE_EXPIRED, EndReason.END_REASON_IDLE).payload
_RECLAIMING = events.state_event(State.STATE_RECLAIMING).payload
_RECLAIMED = events.state_event(State.STATE_RECLAIMED).payload
_STARTED = events.stage_event(Stage.STAGE_RECLAIM, StageEvent.PROGRESS_STARTED).payload


class Reclamation:
    """Ends functions whose time has come and removes what is theirs, many at a time."""

    def __init__(
        self,
        store: Store,
        catalog: Catalog,
        lookup: Lookup,
        driver: Driver,
        builds: Builds,
        tracer: Tracer,
        replica: str,
        idle_floor: Callable[[], datetime],
        on_rows: Callable[[Sequence[FunctionRow]], None],
        routes_taken: Callable[[], Awaitable[str]],
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._lookup = lookup
        self._driver = driver
        self._builds = builds
        self._routes_taken = routes_taken
        self._tracer = tracer
        self._replica = replica
        self._idle_floor = idle_floor
        self._on_rows = on_rows

    async def reclaim(self, targets: Sequence[ReclaimTarget]) -> list[ReclaimOutcome]:
        """Return what became of each target, in their order."""
        outcomes: dict[str, ReclaimOutcome] = {}
        uids = [target.uid for target in targets]
        for at in range(0, len(uids), _BATCH):
            outcomes.update(await self._reclaim(sorted(set(uids[at : at + _BATCH]))))
        return [
            outcomes.get(target.uid)
            or ReclaimOutcome(
                name=target.name, uid=target.uid, result=ReclaimOutcome.RESULT_NOT_FOUND
            )
            for target in targets
        ]

    async def _reclaim(self, uids: list[str]) -> dict[str, ReclaimOutcome]:
        begin = utcnow()
        rows = await self._store.retrying(lambda: self._begin(uids))
        self._on_rows(rows)
        ending = {row.uid: row for row in rows}
        outcomes = await self._others([uid for uid in uids if uid not in ending])
        if not ending:
            return outcomes
        removed, released, _ = await asyncio.gather(
            self._remove(list(ending)),
            asyncio.gather(*(self._release(row) for row in rows)),
            self._routes_taken(),
        )
        done: list[tuple[FunctionRow, ReclaimOutcome]] = []
        for row, (from_builder, builder_error) in zip(rows, released, strict=True):
            by_uid, driver_error = removed
            found = by_uid.get(row.uid, [])
            outcome = _outcome(row, [r for r in found if r.type != "error"], from_builder)
            error = "; ".join(e for e in (driver_error, builder_error, still_there(found)) if e)
            outcomes[row.uid] = outcome
            if error:
                outcome.result = ReclaimOutcome.RESULT_FAILED
                outcome.error = error
            else:
                done.append((row, outcome))
        if done:
            finished = await self._store.retrying(lambda: self._finish(done, begin))
            self._on_rows(finished)
            self._record_spans(done, begin)
        return outcomes

    async def _begin(self, uids: list[str]) -> list[FunctionRow]:
        async with self._store.connection() as connection:
            records = self._store.queries.begin_reclaim(
                connection,
                uids=uids,
                floor=self._idle_floor(),
                expired=_EXPIRED,
                idle=_IDLE,
                reclaiming=_RECLAIMING,
                started=_STARTED,
                replica=self._replica,
            )
            return [row_of(record) async for record in records]

    async def _others(self, uids: list[str]) -> dict[str, ReclaimOutcome]:
        """What to say of those that did not come to their end now."""
        if not uids:
            return {}
        async with self._store.connection() as connection:
            records = self._store.queries.deadlines_of(
                connection, uids=uids, floor=self._idle_floor()
            )
            until = {record["uid"]: record["until"] async for record in records}
        outcomes: dict[str, ReclaimOutcome] = {}
        for row in await self._lookup.by_uids(uids):
            if row.outcome:
                outcomes[row.uid] = ReclaimOutcome.FromString(row.outcome)
            elif row.uid in until:
                outcomes[row.uid] = ReclaimOutcome(
                    name=row.name,
                    uid=row.uid,
                    result=ReclaimOutcome.RESULT_RENEWED,
                    renewed_until=timestamp(until[row.uid]),
                    create_time=timestamp(row.create_time),
                    traceparent=row.traceparent,
                )
        return outcomes

    async def _remove(self, uids: list[str]) -> tuple[dict[str, list[Found]], str]:
        try:
            return await self._driver.remove(uids), ""
        except DriverUnavailable as error:
            log.warning("remove_not_finished", functions=len(uids), error=str(error))
            return {}, f"the driver: {error}"
        except Exception as error:
            log.error("remove_failed", functions=len(uids), exc_info=error)
            return {}, f"the driver: {error}"

    async def _release(self, row: FunctionRow) -> tuple[tuple[list[str], list[str]], str]:
        # A function that never got as far as a build may still hold one whose answer was lost.
        try:
            answer = await self._builds.release(row.uid)
        except BuilderUnavailable as error:
            return ([], []), f"the builder: {error}"
        return (list(answer.removed), list(answer.kept)), ""

    async def _finish(
        self, done: Sequence[tuple[FunctionRow, ReclaimOutcome]], begin: datetime
    ) -> list[FunctionRow]:
        finished = events.stage_event(
            Stage.STAGE_RECLAIM,
            StageEvent.PROGRESS_FINISHED,
            duration=utcnow() - begin,
        )
        async with self._store.connection() as connection:
            records = self._store.queries.finish_reclaim(
                connection,
                uids=[row.uid for row, _ in done],
                specs=[_without_secrets(row.spec) for row, _ in done],
                outcomes=[outcome.SerializeToString() for _, outcome in done],
                finished=finished.payload,
                reclaimed=_RECLAIMED,
                replica=self._replica,
            )
            return [row_of(record) async for record in records]

    def _record_spans(
        self, done: Sequence[tuple[FunctionRow, ReclaimOutcome]], begin: datetime
    ) -> None:
        nanoseconds = int(begin.timestamp() * 1e9)
        for row, outcome in done:
            with span_of(
                self._tracer, row.traceparent, "reclaim", row.id, row.uid, nanoseconds
            ) as span:
                span.set_attribute("mayfly.removed", len(outcome.removed))
            end_root(self._tracer, row, utcnow(), outcome.end_reason)

    async def remove_orphans(self, orphans: Sequence[Resource]) -> list[ReclaimOutcome]:
        """Remove what belongs to nothing that lives; what lives meanwhile is left alone."""
        uids = sorted({orphan.uid for orphan in orphans if orphan.uid})
        living = {
            row.uid
            for row in await self._lookup.by_uids(uids)
            if row.state != State.STATE_RECLAIMED
        }
        return [await self._remove_orphan(orphan, living) for orphan in orphans]

    async def _remove_orphan(self, orphan: Resource, living: set[str]) -> ReclaimOutcome:
        outcome = ReclaimOutcome(
            name=f"{orphan.type}/{orphan.id}",
            uid=orphan.uid,
            result=ReclaimOutcome.RESULT_RECLAIMED,
            removed=[orphan],
        )
        if orphan.uid in living:
            outcome.result = ReclaimOutcome.RESULT_NOT_FOUND
            del outcome.removed[:]
            return outcome
        try:
            if orphan.type == "row":
                await self._remove_rows(orphan.uid)
            elif orphan.type == "route":
                _, _, function_id = orphan.id.rpartition("/")
                self._catalog.retract(function_id, orphan.uid)
                await self._routes_taken()
            else:
                found = Found(orphan.type, orphan.id, orphan.uid or None, orphan.detail)
                await self._driver.remove_resource(found)
        except Exception as error:  # noqa: BLE001 - reported; the sweep comes again
            outcome.result = ReclaimOutcome.RESULT_FAILED
            outcome.error = str(error)
            del outcome.removed[:]
        return outcome

    async def _remove_rows(self, uid: str) -> None:
        async with self._store.connection() as connection:
            await self._store.queries.delete_stray_rows(connection, uids=[uid])


class ReclaimerService(ReclaimerServiceServicer):
    """Serves the janitor."""

    def __init__(
        self,
        store: Store,
        catalog: Catalog,
        driver: Driver,
        inventories: Callable[[], Awaitable[Inventories]],
        reclamation: Reclamation,
        restored: asyncio.Event,
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._driver = driver
        self._inventories = inventories
        self._reclamation = reclamation
        self._restored = restored

    async def WatchDeadlines(
        self, request: WatchDeadlinesRequest, context: Any
    ) -> AsyncIterator[WatchDeadlinesResponse]:
        """See `ReclaimerService.WatchDeadlines`."""
        await self._restored.wait()
        feed = self._catalog.follow_deadlines()
        try:
            uids = list(self._catalog.entries)
            chunks = [uids[at : at + CHUNK] for at in range(0, len(uids), CHUNK)] or [[]]
            for number, chunk in enumerate(chunks, 1):
                known = (self._catalog.deadline(uid) for uid in chunk)
                yield WatchDeadlinesResponse(
                    upserts=[deadline for deadline in known if deadline is not None],
                    snapshot_complete=number == len(chunks),
                )
            while True:
                await feed.changed.wait()
                if self._catalog.closed:
                    return
                upserts: list[Deadline] = []
                removals: list[str] = []
                for uid, function_id in feed.take(CHUNK):
                    deadline = self._catalog.deadline(uid)
                    if deadline is not None:
                        upserts.append(deadline)
                    elif function_id not in self._catalog.live:
                        removals.append(f"functions/{function_id}")
                if upserts or removals:
                    yield WatchDeadlinesResponse(upserts=upserts, removals=removals)
        finally:
            self._catalog.unfollow(feed)

    async def Reclaim(self, request: ReclaimRequest, context: Any) -> ReclaimResponse:
        """See `ReclaimerService.Reclaim`."""
        await self._restored.wait()
        outcomes = await self._reclamation.reclaim(request.targets)
        if request.orphans:
            outcomes += await self._reclamation.remove_orphans(request.orphans)
        return ReclaimResponse(outcomes=outcomes)

    async def ListResources(
        self, request: ListResourcesRequest, context: Any
    ) -> AsyncIterator[ListResourcesResponse]:
        """See `ReclaimerService.ListResources`. The world is looked at first, rows afterwards:

        a row exists before anything of its function does, so what has no row then is an orphan.
        """
        found, (inventories, silent) = await asyncio.gather(
            self._driver.list_resources(), self._inventories()
        )
        wanted = list(request.uids) or None
        async with self._store.connection() as connection:
            queries = self._store.queries
            rows = [r async for r in queries.live_rows(connection, uids=None)]
            strays = [r async for r in queries.stray_rows(connection)]
        names = {row["uid"]: f"functions/{row['id']}" for row in rows}
        resources = [_seen(resource, names) for resource in found]
        resources += _routes(inventories, rows, self._catalog)
        resources += [
            Resource(type="row", id=row["uid"], owner=names[row["uid"]], uid=row["uid"])
            for row in rows
        ]
        resources += [
            Resource(
                type="row", id=f"{row['type']}/{row['uid']}", uid=row["uid"], orphan=True,
                detail=f"{row['type']} of a function that is no more",
            )
            for row in strays
        ]  # fmt: skip
        counted = Counter(_plural(resource.type) for resource in resources)
        looked_at = [f"{kind} ({count})" for kind, count in sorted(counted.items())]
        looked_at += [f"Envoy of {name}" for name in sorted(inventories)]
        looked_at += [f"Envoy of {name}: no answer" for name in silent]
        chosen = [
            resource
            for resource in resources
            if (wanted is None or resource.uid in wanted)
            and (resource.orphan or not request.orphans_only)
        ]
        for at in range(0, len(chosen), CHUNK):
            yield ListResourcesResponse(resources=chosen[at : at + CHUNK])
        yield ListResourcesResponse(looked_at=looked_at)


def _outcome(
    row: FunctionRow, found: Sequence[Found], from_builder: tuple[list[str], list[str]]
) -> ReclaimOutcome:
    removed = [
        Resource(type=r.type, id=r.id, owner=row.name, uid=row.uid, detail=r.detail) for r in found
    ]
    if row.endpoint:
        removed.append(Resource(type="route", id=row.id, owner=row.name, uid=row.uid))
    removed.append(Resource(type="row", id=row.uid, owner=row.name, uid=row.uid, detail="source"))
    removed += [_from_builder(text, row) for text in from_builder[0]]
    outcome = ReclaimOutcome(
        name=row.name,
        uid=row.uid,
        result=ReclaimOutcome.RESULT_RECLAIMED,
        removed=removed,
        kept=[_from_builder(text, row) for text in from_builder[1]],
        expire_time=timestamp(row.ended_time or row.expire_time),
        end_reason=_REASONS.get(row.end_reason, ""),
        create_time=timestamp(row.create_time),
        traceparent=row.traceparent,
    )
    if row.last_use_time is not None:
        outcome.last_use_time.CopyFrom(timestamp(row.last_use_time))
    return outcome


def _from_builder(text: str, row: FunctionRow) -> Resource:
    """The builder says "artefact 8c1f2a" and the like."""
    kind, _, rest = text.partition(" ")
    name, _, detail = rest.partition(" ")
    return Resource(type=kind, id=name, owner=row.name, uid=row.uid, detail=detail)


def _seen(resource: Found, names: dict[str, str]) -> Resource:
    uid = resource.uid or ""
    orphan = bool(uid) and uid not in names
    return Resource(
        type=resource.type,
        id=resource.id,
        owner=names.get(uid, ""),
        uid=uid,
        orphan=orphan,
        detail=f"no function has this uid; {resource.detail}" if orphan else resource.detail,
    )


def _routes(
    inventories: dict[str, list[str]], rows: Sequence[Any], catalog: Catalog
) -> list[Resource]:
    uids = {row["id"]: row["uid"] for row in rows if row["state"] not in ENDED}
    last_uids = catalog.last_uids() if inventories else {}
    return [
        Resource(
            type="route",
            id=f"{gateway}/{function_id}",
            owner=f"functions/{function_id}",
            uid=uids.get(function_id) or last_uids.get(function_id, ""),
            orphan=function_id not in uids,
            detail="" if function_id in uids else "no function of this id lives",
        )
        for gateway, function_ids in inventories.items()
        for function_id in function_ids
    ]


def _plural(kind: str) -> str:
    name, dot, group = kind.partition(".")
    if name.endswith("s"):
        many = f"{name}es"
    else:
        many = f"{name[:-1]}ies" if name[-1] == "y" else f"{name}s"
    return many + dot + group


def _without_secrets(spec: bytes) -> bytes:
    function = Function.FromString(spec)
    function.env.clear()
    return function.SerializeToString()
