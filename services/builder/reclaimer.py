"""ReclaimerService of builds and environments."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
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
from services.builder.changes import Changes
from services.builder.directories import Directories, remove
from services.builder.ledger import Ledger
from services.builder.removal import Removal
from services.builder.view import PREFIX, timestamp
from services.builder.world import (
    ARTEFACT,
    ENVIRONMENT,
    PROCESS,
    Thing,
    look,
    process,
)

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
        self, ledger: Ledger, removal: Removal, directories: Directories, changes: Changes
    ) -> None:
        self._ledger = ledger
        self._removal = removal
        self._directories = directories
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
        """Stream what is found on this machine, and holds of functions that are asked for."""
        uids = set(request.uids)
        world = await asyncio.to_thread(look, self._directories)
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
        due = [(row["id"], row["uid"]) for row in rows if row["due"]]
        failed = await self._removal.remove_builds(due)
        outcomes: dict[tuple[str, str], ReclaimOutcome] = {}
        for row in rows:
            path = str(self._directories.artefact(row["id"], row["uid"]))
            resource = Resource(
                type=ARTEFACT, id=path, owner=f"{PREFIX}{row['id']}", uid=row["uid"]
            )
            outcome = outcome_of(f"{PREFIX}{row['id']}", row, resource, failed.get(row["uid"]))
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
        paths = {
            row["uid"]: self._directories.environment(row["digest"], row["uid"])
            for row in rows
            if row["due"]
        }
        failed = await asyncio.to_thread(remove, paths.values())
        gone = [
            (row["digest"], row["uid"])
            for row in rows
            if row["due"] and paths[row["uid"]] not in failed
        ]
        if gone:
            await self._ledger.forget_environments(gone)
        outcomes: dict[tuple[str, str], ReclaimOutcome] = {}
        for row in rows:
            name = f"{ENVIRONMENTS}{row['digest']}"
            path = self._directories.environment(row["digest"], row["uid"])
            resource = Resource(type=ENVIRONMENT, id=str(path), owner=name, uid=row["uid"])
            outcome = outcome_of(name, row, resource, failed.get(path))
            outcomes[outcome.name, outcome.uid] = outcome
        return outcomes

    async def _reclaim_orphans(self, orphans: Iterable[Resource]) -> list[ReclaimOutcome]:
        wanted = list(orphans)
        if not wanted:
            return []
        things = await asyncio.to_thread(
            lambda: {(t.type, t.id): t for t in look(self._directories).things}
        )
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
            elif why := await asyncio.to_thread(remove_thing, thing, self._directories):
                outcome.result, outcome.error = ReclaimOutcome.RESULT_FAILED, why
            else:
                outcome.result = ReclaimOutcome.RESULT_RECLAIMED
                outcome.removed.append(resource)
            outcomes.append(outcome)
        return outcomes


def remove_thing(thing: Thing, directories: Directories) -> str:
    """Remove an orphan; return why it could not be, "" when it is gone. Blocks."""
    if thing.type != PROCESS:
        return "; ".join(remove([Path(thing.id)]).values())
    number, _, _ = thing.id.partition("@")
    try:
        descriptor = os.pidfd_open(int(number))
    except ProcessLookupError:
        return ""
    try:
        # The descriptor is that of one process for good; is it still the one that was meant?
        same = process(number, directories)
        if same is not None and same.id == thing.id:
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    except ProcessLookupError:
        return ""
    except PermissionError as error:
        return str(error)
    finally:
        os.close(descriptor)
    return ""


def deadline_of(row: Record) -> Deadline:
    """Return a row as a deadline."""
    return Deadline(
        name=row["name"],
        uid=row["uid"],
        expire_time=timestamp(row["expire_time"]),
        ended=row["ended"],
        traceparent=row["traceparent"],
    )


def outcome_of(name: str, row: Record, resource: Resource, failed: str | None) -> ReclaimOutcome:
    """Return what became of a row's thing, whose file is `resource`."""
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
        outcome.removed.append(resource)
    return outcome


def resource_of(thing: Thing, *, orphan: str) -> Resource:
    """Return a thing as a resource; `orphan` says why it belongs to nothing, "" where it does."""
    owner = {ARTEFACT: PREFIX, ENVIRONMENT: ENVIRONMENTS}.get(thing.type)
    return Resource(
        type=thing.type,
        id=thing.id,
        owner=f"{owner}{thing.name}" if owner else "",
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
