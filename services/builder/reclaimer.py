"""ReclaimerService of builds and environments."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

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

from libs.store import Record, StoreUnavailable
from services.builder.backends.base import ARTEFACT, ENVIRONMENT, IMAGE, Thing, World
from services.builder.changes import Changes
from services.builder.choice import Choice
from services.builder.failures import looking
from services.builder.ledger import Ledger
from services.builder.removal import Removal
from services.builder.view import PREFIX, made_of, timestamp

NAME = "mayfly.v1.ReclaimerService"
ENVIRONMENTS = "environments/"
HOLD = "row"
_HOLD_OF = f"hold of {PREFIX}"
# Deadlines are told this long before they come; most never come, since functions release.
_HORIZON = timedelta(seconds=30)
_LOOK_SECONDS = 1.0
_SETTLE_SECONDS = 0.02
_CHUNK = 500


class ReclaimerService(ReclaimerServiceServicer):
    """Tells of deadlines, removes what is due, and shows what there is."""

    def __init__(
        self,
        ledger: Ledger,
        removal: Removal,
        choice: Choice,
        changes: Changes,
    ) -> None:
        self._ledger = ledger
        self._removal = removal
        self._choice = choice
        self._changes = changes

    async def WatchDeadlines(
        self, request: WatchDeadlinesRequest, context: Any
    ) -> AsyncIterator[WatchDeadlinesResponse]:
        """Stream what ends soon, and what has been ended and is not gone."""
        told: dict[str, Deadline] = {}
        complete = False
        while True:
            self._changes.deadlines.clear()
            try:
                rows = await self._ledger.deadlines(_HORIZON)
            except StoreUnavailable:
                await asyncio.sleep(_LOOK_SECONDS)
                continue
            now: dict[str, Deadline] = {row["name"]: deadline_of(row) for row in rows}
            upserts = [each for name, each in now.items() if told.get(name) != each]
            removals = [name for name in told if name not in now]
            for start in range(0, len(upserts), _CHUNK):
                yield WatchDeadlinesResponse(upserts=upserts[start : start + _CHUNK])
            if removals or not complete:
                yield WatchDeadlinesResponse(removals=removals, snapshot_complete=not complete)
            told, complete = now, True
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._changes.deadlines.wait()
                # What moves deadlines comes in crowds.
                await asyncio.sleep(_SETTLE_SECONDS)

    async def Reclaim(self, request: ReclaimRequest, context: Any) -> ReclaimResponse:
        """Remove what is due by its row and the database's clock."""
        targets = list(request.targets)
        builds = await self._reclaim_builds([t for t in targets if t.name.startswith(PREFIX)])
        environments = await self._reclaim_environments(
            [t for t in targets if t.name.startswith(ENVIRONMENTS)]
        )
        done = builds | environments
        outcomes = [
            done.get((t.name, t.uid))
            or ReclaimOutcome(name=t.name, uid=t.uid, result=ReclaimOutcome.RESULT_NOT_FOUND)
            for t in targets
        ]
        outcomes += await self._reclaim_orphans(request.orphans)
        return ReclaimResponse(outcomes=outcomes)

    async def ListResources(
        self, request: ListResourcesRequest, context: Any
    ) -> AsyncIterator[ListResourcesResponse]:
        """Stream what is found by looking, and holds of functions that are asked for."""
        uids = set(request.uids)
        world = await self._look()
        # The rows after the world: what was there without a row has none to come.
        known = await self._ledger.known()
        resources = [
            resource_of(thing, orphan=known.why_orphan(thing))
            for thing in world.things
            if not uids or thing.uid in uids
        ]
        if request.orphans_only:
            resources = [resource for resource in resources if resource.orphan]
        looked_at = list(world.looked_at)
        if uids and not request.orphans_only:
            holds = await self._ledger.holds_of(uids)
            resources += [hold_of(row) for row in holds]
            looked_at.append(f"holds ({len(holds)})")
        for start in range(0, len(resources), _CHUNK):
            yield ListResourcesResponse(resources=resources[start : start + _CHUNK])
        yield ListResourcesResponse(looked_at=looked_at)

    async def _reclaim_builds(
        self, targets: Sequence[ReclaimTarget]
    ) -> dict[tuple[str, str], ReclaimOutcome]:
        if not targets:
            return {}
        rows = await self._ledger.end_builds([(_last(t.name), t.uid) for t in targets])
        builds = {row["uid"]: made_of(row["id"], row["uid"], row["outcome"]) for row in rows}
        failed = await self._removal.remove_builds(
            [builds[row["uid"]] for row in rows if row["due"]]
        )
        outcomes: dict[tuple[str, str], ReclaimOutcome] = {}
        for row in rows:
            name = f"{PREFIX}{row['id']}"
            thing = self._choice.thing_of(builds[row["uid"]])
            resource = (
                Resource(type=thing.type, id=thing.id, owner=name, uid=row["uid"])
                if thing
                else None
            )
            outcome = outcome_of(name, row, resource, failed.get(row["uid"]))
            if row["due"] and row["environment"]:
                outcome.kept.append(
                    Resource(
                        type=ENVIRONMENT, id=row["environment"], detail="kept for its retention"
                    )
                )
            outcomes[outcome.name, outcome.uid] = outcome
        return outcomes

    async def _reclaim_environments(
        self, targets: Sequence[ReclaimTarget]
    ) -> dict[tuple[str, str], ReclaimOutcome]:
        if not targets:
            return {}
        rows = await self._ledger.end_environments([(_last(t.name), t.uid) for t in targets])
        failed: dict[str, str] = {}
        for row in rows:
            thing = self._choice.environment_of(row["digest"], row["uid"])
            if row["due"] and (why := await self._choice.remove_thing(thing)):
                failed[row["uid"]] = why
        gone = [
            (row["digest"], row["uid"]) for row in rows if row["due"] and row["uid"] not in failed
        ]
        if gone:
            await self._ledger.forget_environments(gone)
        outcomes: dict[tuple[str, str], ReclaimOutcome] = {}
        for row in rows:
            name = f"{ENVIRONMENTS}{row['digest']}"
            thing = self._choice.environment_of(row["digest"], row["uid"])
            resource = Resource(type=ENVIRONMENT, id=thing.id, owner=name, uid=row["uid"])
            outcome = outcome_of(name, row, resource, failed.get(row["uid"]))
            outcomes[outcome.name, outcome.uid] = outcome
        return outcomes

    async def _reclaim_orphans(self, orphans: Iterable[Resource]) -> list[ReclaimOutcome]:
        wanted = list(orphans)
        if not wanted:
            return []
        things = {(thing.type, thing.id): thing for thing in (await self._look()).things}
        known = await self._ledger.known()
        outcomes: list[ReclaimOutcome] = []
        for resource in wanted:
            outcome = ReclaimOutcome(name=f"{resource.type}/{resource.id}", uid=resource.uid)
            if resource.type == HOLD and resource.id.startswith(_HOLD_OF):
                # It was written after its function had let go: the last try of a call that was
                # cut off. The janitor asks for it only when the function is no more.
                build = resource.id.removeprefix(_HOLD_OF)
                await self._removal.release(resource.uid, build)
                outcome.result = ReclaimOutcome.RESULT_RECLAIMED
                outcome.removed.append(resource)
                outcomes.append(outcome)
                continue
            thing = things.get((resource.type, resource.id))
            if thing is None:
                outcome.result = ReclaimOutcome.RESULT_NOT_FOUND
            elif not known.why_orphan(thing):
                outcome.result = ReclaimOutcome.RESULT_RENEWED
            elif why := await self._choice.remove_thing(thing):
                outcome.result, outcome.error = ReclaimOutcome.RESULT_FAILED, why
            else:
                outcome.result = ReclaimOutcome.RESULT_RECLAIMED
                outcome.removed.append(resource)
            outcomes.append(outcome)
        return outcomes

    async def _look(self) -> World:
        with looking():
            return await self._choice.look()


def deadline_of(row: Record) -> Deadline:
    """Return a row as a deadline."""
    return Deadline(
        name=row["name"],
        uid=row["uid"],
        expire_time=timestamp(row["expire_time"]),
        ended=row["ended"],
        traceparent=row["traceparent"],
    )


def outcome_of(
    name: str, row: Record, resource: Resource | None, failed: str | None
) -> ReclaimOutcome:
    """Return what became of a row's thing, which is `resource` (None: not ours to remove)."""
    outcome = ReclaimOutcome(
        name=name,
        uid=row["uid"],
        expire_time=timestamp(row["expire_time"]),
        create_time=timestamp(row["create_time"]),
        end_reason="ttl",
        traceparent=row.get("traceparent") or "",
    )
    if not row["due"]:
        outcome.result = ReclaimOutcome.RESULT_RENEWED
        outcome.renewed_until.CopyFrom(timestamp(row["expire_time"]))
    elif failed is not None:
        outcome.result, outcome.error = ReclaimOutcome.RESULT_FAILED, failed
    else:
        outcome.result = ReclaimOutcome.RESULT_RECLAIMED
        if resource is not None:
            outcome.removed.append(resource)
    return outcome


def resource_of(thing: Thing, *, orphan: str) -> Resource:
    """Return a thing as a resource; `orphan` says why it belongs to nothing, "" where it does."""
    owner = {ARTEFACT: PREFIX, IMAGE: PREFIX, ENVIRONMENT: ENVIRONMENTS}.get(thing.type)
    return Resource(
        type=thing.type,
        id=thing.id,
        owner=f"{owner}{thing.name}" if owner and thing.name else "",
        uid=thing.uid,
        orphan=bool(orphan),
        detail=orphan or thing.detail,
    )


def hold_of(row: Record) -> Resource:
    """Return a function's hold as a resource."""
    return Resource(
        type=HOLD,
        id=f"{_HOLD_OF}{row['build']}",
        owner=row["function"],
        uid=row["function_uid"],
    )


def _last(name: str) -> str:
    return name.partition("/")[2]
