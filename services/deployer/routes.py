"""Routes to the gateways: a snapshot, then changes; acknowledgements and use in return."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import structlog
from mayfly.v1.error_pb2 import ErrorReason
from mayfly.v1.route_pb2 import (
    ActivateFunctionRequest,
    ActivateFunctionResponse,
    ActivityReport,
    RemovedRoute,
    Route,
    SyncRoutesRequest,
    SyncRoutesResponse,
)
from mayfly.v1.route_pb2_grpc import RouteServiceServicer

from libs.rpc.errors import MayflyError
from services.deployer.catalog import Catalog, Feed
from services.deployer.drivers.base import Driver
from services.deployer.lookup import Lookup
from services.deployer.view import route_of

log = structlog.get_logger()

CHUNK = 500
ACK_SECONDS = 2.0
_INVENTORY_SECONDS = 2.0
_RETURN_SECONDS = 3.0
"""A gateway that is there tries again at least once a second."""
_MAX_WAIT_SECONDS = 60.0


class GatewayStream:
    """One connected gateway: what it has been sent, and what it has taken."""

    def __init__(self, name: str, feed: Feed) -> None:
        self.name = name
        self.feed = feed
        # Versions grow from one stream to the next, a restart of the deployer included.
        self.sent = time.time_ns() // 1_000_000
        self.taken = 0
        self.moved = asyncio.Event()
        self.inventories: dict[int, asyncio.Future[list[str]]] = {}
        self.requests: list[int] = []

    def acknowledged(self, version: int) -> None:
        """The gateway's Envoy has everything up to `version`."""
        self.taken = max(self.taken, version)
        moved, self.moved = self.moved, asyncio.Event()
        moved.set()

    def ahead(self) -> int:
        """The version that will hold all that has changed until now."""
        return self.sent + -(-len(self.feed) // CHUNK)

    async def until_taken(self, version: int) -> None:
        """Return when the gateway has taken `version`."""
        while self.taken < version:
            await self.moved.wait()


class Gateways:
    """The gateways that are connected to this replica."""

    def __init__(self) -> None:
        self.streams: set[GatewayStream] = set()
        self._inventory_ids = itertools.count(1)
        self._expected: dict[str, float] = {}
        self._joined = asyncio.Event()

    def join(self, stream: GatewayStream) -> None:
        """A gateway is connected."""
        self.streams.add(stream)
        self._expected.pop(stream.name, None)
        joined, self._joined = self._joined, asyncio.Event()
        joined.set()

    def leave(self, stream: GatewayStream) -> None:
        """A gateway's stream has ended. It serves what it was sent, and comes back."""
        self.streams.discard(stream)
        self.expect([stream.name])

    def expect(self, names: Iterable[str]) -> None:
        """Gateways that have routes and no stream; they are waited for, but not for long."""
        until = time.monotonic() + _RETURN_SECONDS
        self._expected.update(dict.fromkeys(names, until))

    async def _until_back(self, deadline: float) -> None:
        while awaited := [at for at in self._expected.values() if at > time.monotonic()]:
            left = min(deadline, max(awaited)) - time.monotonic()
            if left <= 0:
                return
            try:
                async with asyncio.timeout(left):
                    await self._joined.wait()
            except TimeoutError:
                return

    async def all_taken(self, seconds: float = ACK_SECONDS) -> str:
        """Wait until every gateway has taken all changes so far; return a few words on it."""
        await self._until_back(time.monotonic() + seconds)
        waiting = [asyncio.ensure_future(s.until_taken(s.ahead())) for s in self.streams]
        if not waiting:
            return "no gateway is connected"
        done, late = await asyncio.wait(waiting, timeout=seconds)
        for task in late:
            task.cancel()
        if late:
            return f"{len(done)} of {len(waiting)} gateways"
        return "1 gateway" if len(done) == 1 else f"{len(done)} gateways"

    async def inventories(self) -> tuple[dict[str, list[str]], list[str]]:
        """Return the functions in each gateway's Envoy, and the gateways that did not answer."""
        asked = {stream: self._ask(stream) for stream in self.streams}
        if asked:
            await asyncio.wait(asked.values(), timeout=_INVENTORY_SECONDS)
        found: dict[str, list[str]] = {}
        silent: list[str] = []
        for stream, answer in asked.items():
            if answer.done() and not answer.cancelled():
                found[stream.name] = answer.result()
            else:
                answer.cancel()
                silent.append(stream.name)
        return found, silent

    def _ask(self, stream: GatewayStream) -> asyncio.Future[list[str]]:
        number = next(self._inventory_ids)
        answer: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
        stream.inventories[number] = answer
        stream.requests.append(number)
        stream.feed.changed.set()
        return answer


class RouteService(RouteServiceServicer):
    """Serves the gateways."""

    def __init__(
        self,
        catalog: Catalog,
        gateways: Gateways,
        lookup: Lookup,
        restored: asyncio.Event,
        report: Callable[[str, ActivityReport], Awaitable[None]],
        announce: Callable[[str], None],
        driver: Driver,
    ) -> None:
        self._driver = driver
        self._catalog = catalog
        self._gateways = gateways
        self._lookup = lookup
        self._restored = restored
        self._report = report
        self._announce = announce

    async def SyncRoutes(
        self, request_iterator: AsyncIterator[SyncRoutesRequest], context: Any
    ) -> AsyncIterator[SyncRoutesResponse]:
        """See `RouteService.SyncRoutes`. It begins once all functions have their sockets."""
        first = await anext(aiter(request_iterator), None)
        if first is None or first.WhichOneof("kind") != "hello" or not first.hello.gateway:
            raise MayflyError(
                ErrorReason.ERROR_REASON_INVALID_FIELD,
                "the first message of a stream says who the gateway is",
                fix="send hello with the replica's name first",
                field="hello.gateway",
            )
        await self._restored.wait()
        stream = GatewayStream(first.hello.gateway, self._catalog.follow_routes())
        self._gateways.join(stream)
        log.info("gateway_connected", gateway=stream.name)
        self._announce(stream.name)
        reading = asyncio.create_task(self._read(stream, request_iterator))
        try:
            async for response in self._snapshot(stream):
                yield response
            async for response in self._changes(stream, reading):
                yield response
        finally:
            self._gateways.leave(stream)
            self._catalog.unfollow(stream.feed)
            # Nobody waits any longer for what is gone.
            stream.acknowledged(2**62)
            reading.cancel()
            log.info("gateway_disconnected", gateway=stream.name)

    async def ActivateFunction(
        self, request: ActivateFunctionRequest, context: Any
    ) -> ActivateFunctionResponse:
        """See `RouteService.ActivateFunction`."""
        seconds = min(request.wait.ToTimedelta().total_seconds(), _MAX_WAIT_SECONDS)
        route = await self._known_route(request.function_id)
        if route is not None and route.cold:
            await self._driver.wake(route.uid)
            route = await self._wait(route.uid, seconds) or route
        if route is None:
            row = await self._lookup.newest(request.function_id)
            if row.ended:
                raise MayflyError(
                    ErrorReason.ERROR_REASON_FUNCTION_ENDED,
                    f"the lease of {row.name} has ended",
                    fix="create it again",
                )
            self._catalog.update([row])
            route = await self._wait(row.uid, seconds) or route_of(row, self._lookup.defaults)
        return ActivateFunctionResponse(route=route)

    async def _known_route(self, function_id: str) -> Route | None:
        uid = self._catalog.live.get(function_id)
        return self._catalog.route(uid) if uid else None

    async def _wait(self, uid: str, seconds: float) -> Route | None:
        feed = self._catalog.follow_routes()
        try:
            async with asyncio.timeout(seconds):
                while (route := self._catalog.route(uid)) is None or route.cold:
                    feed.take(CHUNK)
                    await feed.changed.wait()
                return route
        except TimeoutError:
            return None
        finally:
            self._catalog.unfollow(feed)

    async def _snapshot(self, stream: GatewayStream) -> AsyncIterator[SyncRoutesResponse]:
        """All routes in chunks; what changes meanwhile is in the feed and comes afterwards."""
        uids = list(self._catalog.entries)
        chunks = [uids[at : at + CHUNK] for at in range(0, len(uids), CHUNK)] or [[]]
        for number, chunk in enumerate(chunks, 1):
            stream.sent += 1
            routes = (self._catalog.route(uid) for uid in chunk)
            yield SyncRoutesResponse(
                version=stream.sent,
                upserts=[route for route in routes if route is not None],
                snapshot=True,
                snapshot_complete=number == len(chunks),
            )

    async def _changes(
        self, stream: GatewayStream, reading: asyncio.Task[None]
    ) -> AsyncIterator[SyncRoutesResponse]:
        reading.add_done_callback(lambda _: stream.feed.changed.set())
        while True:
            await stream.feed.changed.wait()
            if self._catalog.closed:
                return
            if reading.done():
                reading.result()
                return
            taken = stream.feed.take(CHUNK)
            requests, stream.requests = stream.requests, []
            if taken:
                stream.sent += 1
            upserts: list[Route] = []
            removals: list[RemovedRoute] = []
            for uid, function_id in taken:
                route = self._catalog.route(uid)
                if route is None:
                    removals.append(RemovedRoute(function_id=function_id, uid=uid))
                else:
                    upserts.append(route)
            if taken or requests:
                yield SyncRoutesResponse(
                    version=stream.sent,
                    upserts=upserts,
                    removals=removals,
                    inventory_request=requests[0] if requests else 0,
                )
            if requests[1:]:
                stream.requests.extend(requests[1:])
                stream.feed.changed.set()

    async def _read(
        self, stream: GatewayStream, requests: AsyncIterator[SyncRoutesRequest]
    ) -> None:
        async for request in requests:
            match request.WhichOneof("kind"):
                case "ack":
                    stream.acknowledged(request.ack.version)
                case "activity":
                    await self._report(stream.name, request.activity)
                case "inventory":
                    answer = stream.inventories.pop(request.inventory.id, None)
                    if answer is not None and not answer.done():
                        answer.set_result(list(request.inventory.function_ids))
                case _:
                    pass
