"""An owner of things that end: real gRPC, and a dictionary for a world."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from mayfly.v1 import reclaimer_pb2, reclaimer_pb2_grpc

from libs.rpc.server import Server

NAME = "mayfly.v1.ReclaimerService"
Outcome = reclaimer_pb2.ReclaimOutcome


@dataclass
class Thing:
    """Something that ends."""

    name: str
    uid: str
    expire_ns: int
    ended: bool = False
    traceparent: str = ""
    resources: list[str] = field(default_factory=lambda: ["process", "socket"])


class TestOwner(reclaimer_pb2_grpc.ReclaimerServiceServicer):
    """Decides by its own row and clock, as owners do."""

    __test__ = False

    def __init__(self, address: str) -> None:
        self.address = address
        self.things: dict[str, Thing] = {}
        self.orphans: dict[str, reclaimer_pb2.Resource] = {}
        # uid → kinds that stay although Reclaim said RECLAIMED, until removed as orphans.
        self.residue: dict[str, list[str]] = {}
        self.stubborn: set[str] = set()  # uids whose residue is only removed as orphans
        self.fail: dict[str, int] = {}  # uid → how many times removal fails
        self.abort_reclaims = 0  # calls that fail as a whole
        self.batches: list[list[str]] = []
        self.reclaimed_at: dict[str, int] = {}
        self.hold_reclaim: asyncio.Event | None = None
        self.clock_behind_ns = 0
        self.shares = True  # whether an environment stays, for others that use it
        self._watchers: set[asyncio.Queue[reclaimer_pb2.WatchDeadlinesResponse]] = set()
        self._server: Server | None = None

    async def start(self) -> None:
        self._server = Server(self.address, [NAME])
        self._server.add(reclaimer_pb2_grpc.add_ReclaimerServiceServicer_to_server, self)
        await self._server.start()
        await self._server.health.set(NAME, True)

    async def stop(self) -> None:
        if self._server:
            await self._server.stop(0)
            self._server = None

    def put(self, name: str, uid: str, seconds: float, **more: Any) -> Thing:
        thing = Thing(name, uid, time.time_ns() + int(seconds * 1e9), **more)
        self.things[uid] = thing
        self.tell(upserts=[deadline_of(thing)])
        return thing

    def renew(self, uid: str, seconds: float, *, tell: bool = True) -> None:
        thing = self.things[uid]
        thing.expire_ns = time.time_ns() + int(seconds * 1e9)
        if tell:
            self.tell(upserts=[deadline_of(thing)])

    def end(self, uid: str) -> None:
        self.things[uid].ended = True
        self.tell(upserts=[deadline_of(self.things[uid])])

    def tell(self, **what: Any) -> None:
        for watcher in self._watchers:
            watcher.put_nowait(reclaimer_pb2.WatchDeadlinesResponse(**what))

    async def WatchDeadlines(
        self, request: reclaimer_pb2.WatchDeadlinesRequest, context: Any
    ) -> AsyncIterator[reclaimer_pb2.WatchDeadlinesResponse]:
        queue: asyncio.Queue[reclaimer_pb2.WatchDeadlinesResponse] = asyncio.Queue()
        self._watchers.add(queue)
        try:
            snapshot = [deadline_of(thing) for thing in self.things.values()]
            for start in range(0, len(snapshot), 1000):
                yield reclaimer_pb2.WatchDeadlinesResponse(upserts=snapshot[start : start + 1000])
            yield reclaimer_pb2.WatchDeadlinesResponse(snapshot_complete=True)
            while True:
                yield await queue.get()
        finally:
            self._watchers.discard(queue)

    async def Reclaim(
        self, request: reclaimer_pb2.ReclaimRequest, context: Any
    ) -> reclaimer_pb2.ReclaimResponse:
        self.batches.append([target.uid for target in request.targets])
        if self.abort_reclaims:
            self.abort_reclaims -= 1
            await context.abort(grpc.StatusCode.INTERNAL, "broken")
        outcomes = [self._reclaim(target) for target in request.targets]
        outcomes += [self._remove_orphan(orphan) for orphan in request.orphans]
        if self.hold_reclaim:
            await self.hold_reclaim.wait()
        return reclaimer_pb2.ReclaimResponse(outcomes=outcomes)

    def _reclaim(self, target: reclaimer_pb2.ReclaimTarget) -> Outcome:
        thing = self.things.get(target.uid)
        outcome = Outcome(name=target.name, uid=target.uid)
        if thing is None:
            outcome.result = Outcome.RESULT_NOT_FOUND
            return outcome
        now = time.time_ns() - self.clock_behind_ns
        if not thing.ended and thing.expire_ns > now:
            outcome.result = Outcome.RESULT_RENEWED
            outcome.renewed_until.FromNanoseconds(thing.expire_ns)
            return outcome
        if self.fail.get(target.uid, 0) > 0:
            self.fail[target.uid] -= 1
            outcome.result = Outcome.RESULT_FAILED
            outcome.error = "process 7 does not end"
            outcome.removed.add(type=thing.resources.pop(0), id=f"{thing.uid}/first")
            return outcome
        del self.things[target.uid]
        self.reclaimed_at[target.uid] = time.time_ns()
        outcome.result = Outcome.RESULT_RECLAIMED
        outcome.removed.extend(resources_of(thing))
        if self.shares:
            outcome.kept.add(type="environment", id="77ab", uid=thing.uid, detail="shared")
        outcome.expire_time.FromNanoseconds(min(thing.expire_ns, now))
        outcome.end_reason = "deleted" if thing.ended else "ttl"
        outcome.create_time.FromNanoseconds(1_700_000_000_000_000_000)
        outcome.traceparent = thing.traceparent
        self.tell(removals=[thing.name])
        return outcome

    def _remove_orphan(self, orphan: reclaimer_pb2.Resource) -> Outcome:
        outcome = Outcome(name=f"{orphan.type}/{orphan.id}")
        for uid, kinds in list(self.residue.items()):
            if orphan.uid == uid and uid not in self.stubborn:
                kinds.remove(orphan.type)
                outcome.result = Outcome.RESULT_RECLAIMED
                return outcome
        if self.orphans.pop(orphan.id, None) is None:
            outcome.result = Outcome.RESULT_NOT_FOUND
        elif orphan.id.startswith("busy"):
            outcome.result = Outcome.RESULT_FAILED
            outcome.error = "device is busy"
        else:
            outcome.result = Outcome.RESULT_RECLAIMED
        return outcome

    async def ListResources(
        self, request: reclaimer_pb2.ListResourcesRequest, context: Any
    ) -> AsyncIterator[reclaimer_pb2.ListResourcesResponse]:
        wanted = set(request.uids)
        found: list[reclaimer_pb2.Resource] = []
        if not request.orphans_only:
            for thing in self.things.values():
                found += resources_of(thing)
            for uid, kinds in self.residue.items():
                found += [reclaimer_pb2.Resource(type=k, id=f"{uid}/{k}", uid=uid) for k in kinds]
            if self.shares:  # it is still there for everybody to see
                shared = (("environment", uid) for uid in wanted)
                found += [reclaimer_pb2.Resource(type=t, id="77ab", uid=u) for t, u in shared]
        found += self.orphans.values()
        resources = [r for r in found if not wanted or r.uid in wanted]
        for resource in resources:
            yield reclaimer_pb2.ListResourcesResponse(resources=[resource])
        yield reclaimer_pb2.ListResourcesResponse(looked_at=["processes (212)"])


def deadline_of(thing: Thing) -> reclaimer_pb2.Deadline:
    expire = Timestamp()
    expire.FromNanoseconds(thing.expire_ns)
    return reclaimer_pb2.Deadline(
        name=thing.name,
        uid=thing.uid,
        expire_time=expire,
        ended=thing.ended,
        traceparent=thing.traceparent,
    )


def resources_of(thing: Thing) -> list[reclaimer_pb2.Resource]:
    return [
        reclaimer_pb2.Resource(type=kind, id=f"{thing.uid}/{kind}", owner=thing.name, uid=thing.uid)
        for kind in thing.resources
    ]
