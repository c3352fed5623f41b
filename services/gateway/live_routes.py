"""The routes as they are now, for those who wait for a change, and Envoy's clusters after them."""

from __future__ import annotations

import asyncio
import time

import structlog
from mayfly.v1.function_pb2 import Protocol
from mayfly.v1.route_pb2 import Route, SyncRoutesResponse

from libs.rpc.addresses import Address
from services.gateway.activity import Activity
from services.gateway.endpoints import Names, addresses
from services.gateway.protos import Proto
from services.gateway.routes import Entry, RouteTable, is_between_endpoints, needs_cluster
from services.gateway.snapshot import ClusterCache, Epoch
from services.gateway.xds import assignment, cluster, moves, parked

log = structlog.get_logger()


class LiveRoutes:
    """Applies what the deployer says to the table and to the cache that Envoy is served from."""

    def __init__(
        self,
        cache: ClusterCache,
        names: Names,
        idle_seconds: float,
        hold: Address,
        hold_http2: Address,
    ) -> None:
        self._table = RouteTable()
        self._cache = cache
        self._names = names
        self._idle_seconds = idle_seconds
        self._hold = hold
        self._hold_http2 = hold_http2
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}
        self._snapshot: set[str] | None = None
        # Uids of functions whose first request came before their route.
        self._used_early: set[str] = set()
        self.activity = Activity(self.uid)
        self.synced = asyncio.Event()
        names.changed = self._name_changed

    def get(self, function_id: str) -> Entry | None:
        """Return what is known of a function, ended or not."""
        return self._table.get(function_id)

    def uid(self, function_id: str) -> str:
        """Return the uid of a function's current life; empty when it is unknown."""
        entry = self._table.get(function_id)
        return entry.route.uid if entry else ""

    def ids(self) -> list[str]:
        """Return the ids of all functions that are known here."""
        return self._table.ids()

    def apply(self, response: SyncRoutesResponse, stream: int) -> None:
        """Apply a snapshot's chunk or a change, as the stream's next message."""
        if response.snapshot and self._snapshot is None:
            self._snapshot = set()
        for route in response.upserts:
            self._upsert(route, in_snapshot=response.snapshot)
        for removed in response.removals:
            self._remove(removed.function_id, removed.uid)
        if response.snapshot_complete:
            for route in self._table.missing_from(self._snapshot or ()):
                self._remove(route.function_id, route.uid)
            self._snapshot = None
            self.synced.set()
        self._cache.commit(Epoch(stream, response.version))

    def stream_ended(self) -> None:
        """Forget a snapshot that broke off; what is known goes on to be served."""
        self._snapshot = None
        self._used_early.clear()
        self.synced.clear()

    def used(self, function_id: str, uid: str) -> bool:
        """Note a use, after which Envoy reaches the function by itself; return if it is new."""
        if self.uid(function_id) != uid:
            early = uid not in self._used_early
            self._used_early.add(uid)
            return early
        if not self._table.note(function_id, uid, "used"):
            return False
        self._publish(function_id)
        return True

    def reached(self, function_id: str, uid: str) -> None:
        """Note that a function has answered through its ingress; who waits for that goes on."""
        if self._table.note(function_id, uid, "reached"):
            self._wake(function_id)

    def watch(self, function_id: str) -> asyncio.Future[None]:
        """Return what is done at the next change of a function's route from this moment on.

        To be cancelled by whoever does not wait for it any more.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(function_id, set()).add(future)
        future.add_done_callback(lambda done: self._watched(function_id, done))
        return future

    async def changed(self, function_id: str) -> None:
        """Return at the next change of a function's route."""
        await self.watch(function_id)

    def _watched(self, function_id: str, done: asyncio.Future[None]) -> None:
        waiting = self._waiting.get(function_id, set())
        waiting.discard(done)
        if not waiting:
            self._waiting.pop(function_id, None)

    def _upsert(self, route: Route, *, in_snapshot: bool) -> None:
        if self._snapshot is not None and in_snapshot:
            self._snapshot.add(route.uid)
        # What was there before this process may have been used before it: no first request.
        self._table.upsert(route, used=in_snapshot or route.uid in self._used_early)
        self._used_early.discard(route.uid)
        self._publish(route.function_id)
        self._wake(route.function_id)

    def _remove(self, function_id: str, uid: str) -> None:
        if self._table.remove(function_id, uid):
            self._publish(function_id)
        self._wake(function_id)  # somebody may wait who knows of it from the deployer's answer

    def _publish(self, function_id: str) -> None:
        entry = self._table.get(function_id)
        now = time.time()
        made: Proto | None = None
        endpoints = b""
        if entry is None:
            pass
        elif is_between_endpoints(entry, now) and self._cache.get(function_id) is not None:
            http2 = entry.route.protocol == Protocol.PROTOCOL_HTTP2
            made = parked(entry.route, self._hold_http2 if http2 else self._hold)
        elif needs_cluster(entry, now) and (found := self._reached_at(entry.route)):
            made = cluster(entry.route, found, self._idle_seconds)
            if moves(found):
                endpoints = _bytes(assignment(entry.route, found))
        if entry is None or made is None:
            self._cache.delete(function_id)
        else:
            self._cache.put(function_id, _bytes(made), entry.expires, endpoints)

    def _reached_at(self, route: Route) -> list[Address]:
        try:
            return self._names.resolve(addresses(route))
        except ValueError as error:
            log.error("route_refused", function=route.function_id, detail=str(error))
            return []

    def _name_changed(self, host: str) -> None:
        for entry in self._table:
            found = (entry.route.endpoint, *entry.route.endpoints)
            if any(f":{host}:" in f":{endpoint}" for endpoint in found):
                self._publish(entry.route.function_id)

    def _wake(self, function_id: str) -> None:
        for future in self._waiting.pop(function_id, ()):
            if not future.done():
                future.set_result(None)


def _bytes(made: Proto) -> bytes:
    return made.SerializeToString(deterministic=True)
