"""Requests that Envoy has no cluster for: held until their function can be reached, then spliced.

Envoy sends a request here in the first moments of a function's life, while it is built, and where
a function is unknown, failed or has ended. Only the head is parsed; after that the connection
belongs to the function, whatever is spoken on it.
"""

from __future__ import annotations

import asyncio
import os
import random
import stat
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any

import structlog
from mayfly.v1.route_pb2 import Route
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer

from libs.rpc.addresses import Address
from libs.telemetry.traceparent import context_of
from services.gateway import http1
from services.gateway.activation import Activate, Activations, Refused
from services.gateway.activity import Function
from services.gateway.endpoints import addresses
from services.gateway.envoy_config import ORIGINAL_PATH
from services.gateway.errors import (
    BAD_REQUEST,
    BROKE_OFF,
    CONTROL_AWAY,
    ENDED,
    NO_GRPC,
    NO_RESPONSE_IN_TIME,
    NOT_FOUND,
    NOT_READY_IN_TIME,
    UNREACHABLE,
    Problem,
)
from services.gateway.ingress_replies import knows_no_way
from services.gateway.live_routes import LiveRoutes
from services.gateway.routes import Entry, refusal
from services.gateway.splice import Side, connect, is_transient
from services.gateway.target import Target, target_of
from services.gateway.wire import Request, Wire

log = structlog.get_logger()

BACKLOG = 4096
RETRY_SECONDS = (0.005, 0.25)
LINGER_SECONDS = 2.0
# Between two questions about a function that stays cold.
WAKE_AGAIN_SECONDS = (0.25, 2.0)
# Between two questions about a function that has no route here yet.
ASK_AGAIN_SECONDS = 1.0
# Between two tries at an ingress that is about to know the way to a function.
ASK_EARLY_SECONDS = 0.02
DEFAULT_TIMEOUT = 60.0  # of a route that names none


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


class Hold:
    """Serves held requests on unix sockets, one for each way that requests come."""

    def __init__(
        self,
        routes: LiveRoutes,
        activate: Activate,
        tracer: Tracer,
        domains: Sequence[str],
        hold_seconds: float,
    ) -> None:
        self._routes = routes
        self._activations = Activations(activate)
        self._tracer = tracer
        self._domains = tuple(domains)
        self._hold_seconds = hold_seconds
        # Uids of functions whose ingress is being asked whether it knows the way.
        self._scouted: set[str] = set()
        self._servers: list[asyncio.Server] = []
        self._requests: set[asyncio.Task[None]] = set()

    async def start(self, address: Address, wire: Wire) -> None:
        """Listen at a unix socket; what an earlier process left of it is removed."""
        self._servers.append(await listen(address, lambda: _Client(wire, self._accept)))

    def open(self) -> int:
        """Return how many held requests are open."""
        return len(self._requests)

    async def stop(self) -> None:
        """Take no more requests, and end those that are open."""
        for server in self._servers:
            server.close()
        for request in self._requests:
            request.cancel()
        self._activations.stop()
        await asyncio.gather(*self._requests, return_exceptions=True)

    def _accept(self, client: Side, request: Request) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(client, request))
        self._requests.add(task)
        task.add_done_callback(self._requests.discard)

    async def _serve(self, client: Side, request: Request) -> None:
        try:
            await _until_gone(client, self._answer(client, request))
        except Refused as refused:
            client.write(request.refusal(refused.problem))
            # Envoy may still be sending; it reads the answer and closes.
            client.discard()
            await asyncio.wait([client.lost], timeout=LINGER_SECONDS)
        except ClientGone:
            pass
        finally:
            client.close()

    async def _answer(self, client: Side, request: Request) -> None:
        head = request.head
        original_path = head.get(ORIGINAL_PATH) or head.path
        target = target_of(head.get("host"), original_path, self._domains)
        if target is None:
            raise Refused(NOT_FOUND)
        held = _Held(self._routes, self._activations, self._scouted, target, self._hold_seconds)
        entry = await held.entry()
        route = entry.route
        if not request.speaks(route):
            raise Refused(NO_GRPC)
        changes = {"x-forwarded-prefix": target.prefix, **_host_changes(route, head)}
        with self._routes.activity.request(Function(route.function_id, route.uid)):
            span = self._first_request(route, head)
            try:
                upstream = await held.exchange(client, request, changes)
                _finish(span, request.status_code(upstream))
            except Refused as refused:
                _finish(span, refused.problem.http, refused.problem.message)
                raise
            except BaseException:
                _finish(span, 0, "the caller went away")
                raise
            try:
                upstream.send_on()
                both = [client.lost, upstream.lost]
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            finally:
                upstream.close()

    def _first_request(self, route: Route, head: http1.Head) -> Span | None:
        if not self._routes.used(route.function_id, route.uid):
            return None
        return self._tracer.start_span(
            "first request",
            context=context_of(route.traceparent),
            kind=SpanKind.SERVER,
            attributes={
                "mayfly.function": route.function_id,
                "mayfly.uid": route.uid,
                "http.request.method": head.method,
                "url.path": head.path.partition("?")[0],
            },
        )


class _Held:
    """One request on its way to a function."""

    def __init__(
        self,
        routes: LiveRoutes,
        activations: Activations,
        scouted: set[str],
        target: Target,
        hold_seconds: float,
    ) -> None:
        self._routes = routes
        self._activations = activations
        self._scouted = scouted
        self._wake_again = WAKE_AGAIN_SECONDS[0]
        self._id = target.function_id
        self._deadline = time.monotonic() + hold_seconds

    async def entry(self) -> Entry:
        """Return what the function is, once it has an endpoint. Raises `Refused`."""
        while True:
            # Watched before it is asked: what changes while the answer is under way counts.
            changed = self._routes.watch(self._id)
            try:
                entry = self._routes.get(self._id)
                if entry is None or entry.ended(time.time()):
                    entry = await self._ask(entry)
                if problem := refusal(entry, time.time()):
                    raise Refused(problem)
                if not entry.route.endpoint and entry.route.cold:
                    entry = await self._wake(changed) or entry
                elif not entry.route.endpoint:
                    await self._until(changed, NOT_READY_IN_TIME)
                if entry.route.endpoint:
                    return entry
            finally:
                changed.cancel()

    async def _ask(self, known: Entry | None) -> Entry:
        """Ask the deployer about a function that has no route here, or one that is over."""
        if known is not None and not self._routes.synced.is_set():
            raise Refused(ENDED)  # whether it was renewed meanwhile cannot be known now
        try:
            return Entry.of(await self._activations.ask(self._id))
        except Refused:
            if known is not None:
                raise Refused(ENDED) from None
            raise

    async def _wake(self, changed: asyncio.Future[None]) -> Entry | None:
        """Have a cold function started; return at a change, or with what the deployer says.

        A deployer that is away is asked again while there is time. Raises `Refused`.
        """
        remaining = self._remaining()
        if remaining <= 0:
            raise Refused(NOT_READY_IN_TIME)
        asked = asyncio.ensure_future(self._activations.ask(self._id))
        try:
            either = [changed, asked]
            await asyncio.wait(either, timeout=remaining, return_when=asyncio.FIRST_COMPLETED)
            if changed.done() or not asked.done():
                return None
            try:
                route = asked.result()
            except Refused as refused:
                if refused.problem is not CONTROL_AWAY:
                    raise
            else:
                if route.endpoint or not route.cold:
                    return Entry.of(route)
            await asyncio.wait([changed], timeout=min(self._wake_again, self._remaining()))
            self._wake_again = min(2 * self._wake_again, WAKE_AGAIN_SECONDS[1])
        finally:
            asked.cancel()
        return None

    async def exchange(self, client: Side, request: Request, changes: Mapping[str, str]) -> Side:
        """Hand the request to the function; return its side once the response has begun.

        An ingress that may not know the way yet is asked by one request until it does; then the
        others that may be sent twice follow. What may not waits until it is said to know it.
        """
        while True:
            changed = self._routes.watch(self._id)
            try:
                entry = await self.entry()
                if not entry.early:
                    return await self._sent(client, request, changes, entry)
                if self._may_try(request, entry):
                    upstream = await self._tried(client, request, changes, entry)
                    if upstream is not None:
                        return upstream
                else:
                    await self._until(changed, NOT_READY_IN_TIME)
            finally:
                changed.cancel()

    def _may_try(self, request: Request, entry: Entry) -> bool:
        alone = entry.route.uid not in self._scouted
        return request.repeatable and (entry.reached or alone)

    async def _tried(
        self, client: Side, request: Request, changes: Mapping[str, str], entry: Entry
    ) -> Side | None:
        """Ask the ingress; after a moment return None where it does not know the way."""
        uid = entry.route.uid
        scouts = not entry.reached
        if scouts:
            self._scouted.add(uid)
        try:
            upstream = await self._sent(client, request, changes, entry)
            if not knows_no_way(bytes(upstream.received)):
                self._routes.reached(self._id, uid)
                return upstream
            upstream.abort()
            await asyncio.sleep(min(ASK_EARLY_SECONDS, max(0.0, self._remaining())))
        finally:
            if scouts:
                self._scouted.discard(uid)
        if self._remaining() <= 0:
            raise Refused(NOT_READY_IN_TIME)
        return None

    async def _sent(
        self, client: Side, request: Request, changes: Mapping[str, str], entry: Entry
    ) -> Side:
        upstream = await self._connect(entry, request.upstream)
        try:
            client.join(upstream)
            upstream.write(request.forward(changes))
            client.last_byte = time.monotonic()
            client.send_on()
            await self._response(client, upstream, entry)
        except BaseException:
            upstream.abort()
            raise
        return upstream

    async def _connect(self, entry: Entry, make: Callable[[], Side]) -> Side:
        pause, longest = RETRY_SECONDS
        turn = random.randrange(1024)  # which of several endpoints is the first
        while True:
            turn += 1
            try:
                found = addresses(entry.route)
                return await connect(found[turn % len(found)], make)
            except ValueError as error:
                raise Refused(UNREACHABLE) from error
            except OSError as error:
                if not is_transient(error) or self._remaining() <= 0:
                    log.warning("function_unreachable", function=self._id, detail=str(error))
                    raise Refused(UNREACHABLE) from error
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._routes.changed(self._id)
            pause = min(2 * pause, longest)
            entry = await self.entry()

    async def _response(self, client: Side, upstream: Side, entry: Entry) -> None:
        """Return when the response begins, within the function's `timeout` of the request's end.

        Until the function has been ready once, the time that a request may be held counts instead.
        """
        uid = entry.route.uid
        settled_at = time.monotonic() if entry.settled else 0.0
        while not upstream.began.done():
            entry = self._still(uid) or entry
            if entry.ended(time.time()):
                raise Refused(ENDED)
            if entry.settled and not settled_at:
                settled_at = time.monotonic()
            due, problem = self._deadline, NOT_READY_IN_TIME
            if settled_at:
                limit = entry.route.timeout.ToNanoseconds() / 1e9 or DEFAULT_TIMEOUT
                due, problem = max(settled_at, client.last_byte) + limit, NO_RESPONSE_IN_TIME
            remaining = due - time.monotonic()
            if remaining <= 0:
                raise Refused(problem)
            changed = self._routes.watch(self._id)
            await asyncio.wait(
                [upstream.began, upstream.lost, changed],
                timeout=max(0.001, min(remaining, entry.expires - time.time())),
                return_when=asyncio.FIRST_COMPLETED,
            )
            changed.cancel()
            if upstream.lost.done() and not upstream.began.done():
                self._still(uid)
                raise Refused(BROKE_OFF)

    def _still(self, uid: str) -> Entry | None:
        """Return what is known of the same function now. Raises `Refused` when it is over."""
        known = self._routes.get(self._id)
        if known is None:
            return None
        if known.route.uid != uid:
            raise Refused(ENDED)
        if problem := refusal(known, time.time()):
            raise Refused(problem)
        return known

    def _remaining(self) -> float:
        return self._deadline - time.monotonic()

    async def _until(self, changed: asyncio.Future[None], otherwise: Problem) -> None:
        remaining = self._remaining()
        if remaining <= 0:
            raise Refused(otherwise)
        if self._routes.get(self._id) is None:
            # Only the deployer's answer is known, and what ends at once may never have a route.
            remaining = min(remaining, ASK_AGAIN_SECONDS)
        await asyncio.wait([changed], timeout=remaining)


class _Client(Side):
    """Envoy's end: hands itself over once a request's head is complete."""

    def __init__(self, wire: Wire, accept: Callable[[Side, Request], None]) -> None:
        super().__init__()
        self._wire = wire
        self._accept: Callable[[Side, Request], None] | None = accept

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        accept = self._accept
        if accept is None:
            return
        try:
            request = self._wire.read(self.received)
        except http1.MalformedHead as error:
            log.warning("held_request_malformed", detail=str(error))
            self._refuse()
            return
        if request is not None:
            self._accept = None
            accept(self, request)
        elif len(self.received) > http1.MAX_HEAD_BYTES:
            self._refuse()

    def _refuse(self) -> None:
        self._accept = None
        self.write(self._wire.malformed(BAD_REQUEST))
        self.close()


async def listen(address: Address, make: Callable[[], Side]) -> asyncio.Server:
    """Listen at a unix socket that only this user reaches; a stale one is removed."""
    loop = asyncio.get_running_loop()
    with suppress(FileNotFoundError):
        os.unlink(address.path)
    server = await loop.create_unix_server(make, address.path, backlog=BACKLOG)
    os.chmod(address.path, stat.S_IRUSR | stat.S_IWUSR)
    return server


async def _until_gone(client: Side, work: Coroutine[Any, Any, None]) -> None:
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait([task, client.lost], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        task.result()
    finally:
        if not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError, Refused):
                await task


def _host_changes(route: Route, head: http1.Head) -> dict[str, str]:
    """Return the headers that differ for an endpoint with a host of its own: as Envoy's router."""
    if not route.host:
        return {}
    earlier, host = head.get("x-forwarded-host"), head.get("host")
    return {"host": route.host, "x-forwarded-host": f"{earlier},{host}" if earlier else host}


def _finish(span: Span | None, code: int, error: str = "") -> None:
    if span is None:
        return
    if code:
        span.set_attribute("http.response.status_code", code)
    if error or code >= 500:
        span.set_status(Status(StatusCode.ERROR, error))
    span.end()
