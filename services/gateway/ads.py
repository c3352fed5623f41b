"""The xDS server: clusters over delta ADS, each with the rest of its lease as its TTL.

Endpoints that move are resources of their own; Envoy asks for them when it has their cluster.

https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#ttl
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import structlog
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration

from services.gateway.protos import DeltaDiscoveryResponse, Proto, Resource
from services.gateway.snapshot import (
    HEARTBEAT_MARGIN,
    AckTracker,
    ClusterCache,
    Entry,
    Epoch,
    Sent,
    Watch,
)
from services.gateway.xds import CLUSTER_TYPE, ENDPOINT_TYPE

log = structlog.get_logger()

BATCH = 1000
# Envoy's workers see a removal a little after its main thread has acknowledged it; up to 15 ms
# were seen. Until then a removed function could still answer.
WORKERS_SECONDS = 0.02


class DiscoveryService:
    """Serves a cache to Envoys; calls `acked` with what an Envoy, its workers too, has taken."""

    def __init__(
        self,
        cache: ClusterCache,
        acked: Callable[[Epoch], None],
        connected: Callable[[bool], None] = lambda _: None,
    ) -> None:
        """`connected` is called with whether an Envoy is, when that changes."""
        self._cache = cache
        self._acked = acked
        self._on_connected = connected
        self._streams = 0
        self.connected = asyncio.Event()

    async def DeltaAggregatedResources(
        self, request_iterator: AsyncIterator[Proto], context: Any
    ) -> AsyncIterator[Proto]:
        """Send every cluster, then changes; runs until Envoy goes."""
        stream = _Stream(self._cache, self._acked)
        reading = asyncio.create_task(stream.read(request_iterator))
        self._streams += 1
        self.connected.set()
        self._on_connected(True)
        try:
            async for response in stream.responses(reading):
                yield response
        finally:
            reading.cancel()
            stream.close()
            self._streams -= 1
            if not self._streams:
                self.connected.clear()
                self._on_connected(False)


class _Stream:
    def __init__(self, cache: ClusterCache, acked: Callable[[Epoch], None]) -> None:
        self._cache = cache
        self._watch: Watch | None = None
        self._subscribed = asyncio.Event()
        self._sent: dict[str, Sent] = {}
        # The endpoints that Envoy asked for, as it has them; None: not yet.
        self._endpoints: dict[str, bytes | None] = {}
        self._nonces = itertools.count(1)
        self._acks = AckTracker(self._on_ack)
        self._forward = acked
        self._quiet_until = 0.0
        self._quiet: deque[Epoch] = deque()

    def close(self) -> None:
        if self._watch is not None:
            self._cache.unwatch(self._watch)

    async def read(self, requests: AsyncIterator[Proto]) -> None:
        async for request in requests:
            if request.type_url == CLUSTER_TYPE and self._watch is None:
                self._begin(request)
            elif request.type_url == ENDPOINT_TYPE:
                self._subscribe(request)
            if request.response_nonce:
                if request.HasField("error_detail"):
                    # Requests to what it refused are held and served by the control process.
                    log.error("envoy_refused_clusters", detail=request.error_detail.message)
                self._acks.answered(request.response_nonce)

    def _begin(self, request: Proto) -> None:
        self._watch = self._cache.watch()
        # What an Envoy still has from an earlier stream, and is gone meanwhile, is to be removed.
        for name in request.initial_resource_versions:
            self._sent[name] = Sent(-1, 0.0)
            self._watch.add(name)
        self._subscribed.set()

    def _subscribe(self, request: Proto) -> None:
        for name in request.resource_names_unsubscribe:
            self._endpoints.pop(name, None)
        for name in request.resource_names_subscribe:
            self._endpoints[name] = None
            if self._watch is not None:
                self._watch.add(name)

    async def responses(self, reading: asyncio.Task[None]) -> AsyncIterator[Proto]:
        subscribed = asyncio.create_task(self._subscribed.wait())
        await asyncio.wait([reading, subscribed], return_when=asyncio.FIRST_COMPLETED)
        subscribed.cancel()
        watch = self._watch
        first = True
        while watch is not None and not reading.done():
            names = watch.take(BATCH)
            epoch = self._cache.epoch
            partial = len(names) == BATCH
            # The first one is sent even when it is empty: Envoy listens once it has it.
            made = list(self._responses(names, always=first))
            first = False
            for response in made:
                reached = None if partial or response is not made[-1] else epoch
                # An endpoint that is new to Envoy may have taken another one's place.
                removed = bool(response.removed_resources) or response.type_url == ENDPOINT_TYPE
                self._acks.sent(response.nonce, reached, removed)
                yield response
            if not made and not partial:
                self._acks.reached(epoch)
            if not partial:
                changed = asyncio.create_task(watch.wait())
                await asyncio.wait([reading, changed], return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()

    def _responses(self, names: list[str], *, always: bool) -> Iterator[Proto]:
        """Yield what is new of clusters, then of their endpoints."""
        clusters = self._clusters_response(names)
        if always or clusters.resources or clusters.removed_resources:
            yield clusters
        endpoints = self._endpoints_response(names)
        if endpoints.resources:
            yield endpoints

    def _clusters_response(self, names: list[str]) -> Proto:
        now = time.time()
        response = self._empty(CLUSTER_TYPE)
        for name in names:
            entry = self._cache.get(name)
            sent = self._sent.get(name)
            if entry is None or entry.expires <= now:
                if self._sent.pop(name, None) is not None:
                    response.removed_resources.append(name)
                continue
            if sent is not None and sent.is_all_of(entry):
                continue
            made = resource(name, entry, sent, now)
            response.resources.append(made)
            self._sent[name] = Sent(entry.version, entry.expires)
            if made.HasField("resource") and name in self._endpoints:
                # A cluster that is sent anew waits for its endpoints anew.
                self._endpoints[name] = None
        return response

    def _endpoints_response(self, names: list[str]) -> Proto:
        response = self._empty(ENDPOINT_TYPE)
        for name in names:
            entry = self._cache.get(name)
            if entry is None or not entry.endpoints or name not in self._endpoints:
                continue
            if self._endpoints[name] != entry.endpoints:
                self._endpoints[name] = entry.endpoints
                made = Resource(name=name, version=str(entry.version))
                made.resource.CopyFrom(AnyMessage(type_url=ENDPOINT_TYPE, value=entry.endpoints))
                response.resources.append(made)
        return response

    def _empty(self, type_url: str) -> Proto:
        return DeltaDiscoveryResponse(
            type_url=type_url,
            nonce=str(next(self._nonces)),
            system_version_info=str(self._cache.epoch.version),
        )

    def _on_ack(self, epoch: Epoch, removed: bool) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        if removed:
            self._quiet_until = now + WORKERS_SECONDS
        if self._quiet_until > now:
            # Timers of the same moment fire in any order; epochs are forwarded in theirs.
            self._quiet.append(epoch)
            loop.call_at(self._quiet_until, lambda: self._forward(self._quiet.popleft()))
        else:
            self._forward(epoch)


def resource(name: str, entry: Entry, sent: Sent | None, now: float) -> Proto:
    """Return a cluster as a resource that Envoy drops by itself when the lease ends.

    Where Envoy has the cluster as it is, a heartbeat (no body) moves the deadline alone.
    """
    made = Resource(name=name, version=str(entry.version), ttl=Duration())
    made.ttl.FromNanoseconds(max(1, round((entry.expires - now) * 1e9)))
    has_it = (
        sent is not None and sent.version == entry.version and sent.expires > now + HEARTBEAT_MARGIN
    )
    if not has_it:
        made.resource.CopyFrom(AnyMessage(type_url=CLUSTER_TYPE, value=entry.body))
    return made
