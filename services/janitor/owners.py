"""The owners of things that end, as the janitor sees them: one connection each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import grpc
import structlog
from mayfly.v1 import reclaimer_pb2, reclaimer_pb2_grpc
from opentelemetry.sdk.trace import TracerProvider

from libs.rpc.cancellation import raise_if_cancelled
from libs.rpc.channel import connect

log = structlog.get_logger()

_RETRY_FIRST_SECONDS = 0.05
_RETRY_MOST_SECONDS = 2.0


class DeadlineSink(Protocol):
    """Who is told of an owner's deadlines."""

    def upsert(self, owner: str, deadline: reclaimer_pb2.Deadline) -> None:
        """A deadline is new or has moved."""
        ...

    def hint_removed(self, owner: str, name: str) -> None:
        """Something of this name has gone; a newer thing may have the same name."""
        ...

    def snapshot_complete(self, owner: str, seen: set[tuple[str, str]]) -> None:
        """The owner has named all (name, uid) that it has."""
        ...


@dataclass(frozen=True)
class Inventory:
    """What an owner found in its part of the world."""

    resources: Sequence[reclaimer_pb2.Resource]
    looked_at: Sequence[str]


class Owner:
    """One owner: a channel that reconnects by itself."""

    def __init__(
        self,
        name: str,
        address: str,
        *,
        reclaim_timeout: float,
        verify_timeout: float,
        tracer_provider: TracerProvider | None = None,
    ) -> None:
        """Timeouts are in seconds."""
        self.name = name
        self.connected = asyncio.Event()
        self._channel = connect(address, tracer_provider)
        self._stub = reclaimer_pb2_grpc.ReclaimerServiceStub(self._channel)
        self._reclaim_timeout = reclaim_timeout
        self._verify_timeout = verify_timeout

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()

    async def watch(self, sink: DeadlineSink) -> None:
        """Tell `sink` of the deadlines, over as many connections as it takes, without end."""
        pause = _RETRY_FIRST_SECONDS
        while True:
            try:
                await self._watch_once(sink)
            except grpc.aio.AioRpcError as error:
                raise_if_cancelled()
                log.info("owner_lost", owner=self.name, code=error.code().name)
            if self.connected.is_set():
                self.connected.clear()
                pause = _RETRY_FIRST_SECONDS
            # `wait_for_ready` waits for the connection; the pause is for an owner that is
            # reachable and ends the stream again and again.
            await asyncio.sleep(pause)
            pause = min(pause * 2, _RETRY_MOST_SECONDS)

    async def _watch_once(self, sink: DeadlineSink) -> None:
        request = reclaimer_pb2.WatchDeadlinesRequest()
        seen: set[tuple[str, str]] | None = set()
        async for response in self._stub.WatchDeadlines(request, wait_for_ready=True):
            for deadline in response.upserts:
                sink.upsert(self.name, deadline)
                if seen is not None:
                    seen.add((deadline.name, deadline.uid))
            for name in response.removals:
                sink.hint_removed(self.name, name)
            if response.snapshot_complete and seen is not None:
                sink.snapshot_complete(self.name, seen)
                seen = None
                self.connected.set()
                log.info("owner_connected", owner=self.name)

    async def reclaim(
        self,
        targets: Iterable[reclaimer_pb2.ReclaimTarget] = (),
        orphans: Iterable[reclaimer_pb2.Resource] = (),
    ) -> Sequence[reclaimer_pb2.ReclaimOutcome]:
        """Ask the owner to remove; outcomes in the order of targets, then orphans.

        Raises `grpc.aio.AioRpcError`.
        """
        request = reclaimer_pb2.ReclaimRequest(targets=targets, orphans=orphans)
        response = await self._stub.Reclaim(request, timeout=self._reclaim_timeout)
        return response.outcomes

    async def resources(self, uids: Iterable[str]) -> Inventory:
        """Return what the owner finds of `uids` in the world. Raises `grpc.aio.AioRpcError`."""
        resources: list[reclaimer_pb2.Resource] = []
        looked_at: list[str] = []
        request = reclaimer_pb2.ListResourcesRequest(uids=uids)
        async for response in self._list(request):
            resources.extend(response.resources)
            looked_at.extend(response.looked_at)
        return Inventory(resources, looked_at)

    async def orphans(self) -> AsyncIterator[reclaimer_pb2.ListResourcesResponse]:
        """Stream what belongs to nothing that lives. Raises `grpc.aio.AioRpcError`."""
        request = reclaimer_pb2.ListResourcesRequest(orphans_only=True)
        async for response in self._list(request):
            yield response

    def _list(
        self, request: reclaimer_pb2.ListResourcesRequest
    ) -> AsyncIterator[reclaimer_pb2.ListResourcesResponse]:
        return aiter(self._stub.ListResources(request, timeout=self._verify_timeout))
