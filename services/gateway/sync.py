"""The stream with the deployer: routes down; acknowledgements, activity and inventories up."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc
import structlog
from google.protobuf.duration_pb2 import Duration
from mayfly.v1.error_pb2 import ErrorReason
from mayfly.v1.route_pb2 import (
    ActivateFunctionRequest,
    Hello,
    Route,
    RouteAck,
    RouteInventory,
    SyncRoutesRequest,
    SyncRoutesResponse,
)
from mayfly.v1.route_pb2_grpc import RouteServiceStub

from libs.rpc.cancellation import raise_if_cancelled
from libs.rpc.errors import from_rpc_error
from services.gateway.activation import Refused
from services.gateway.errors import CONTROL_AWAY, ENDED, NOT_FOUND, Problem
from services.gateway.live_routes import LiveRoutes
from services.gateway.snapshot import Epoch

log = structlog.get_logger()

RECONNECT_SECONDS = (0.05, 1.0)
# Reports that follow each other closely are joined.
REPORT_EVERY_SECONDS = 0.1
# A deployer that restarts is back within this; a request for an unknown function waits for it.
ACTIVATE_WAIT_SECONDS = 3.0

# Asks Envoy itself which functions it has clusters for.
Inventory = Callable[[], Awaitable[list[str]]]


class Sync:
    """Keeps one stream open for as long as it runs."""

    def __init__(
        self, channel: grpc.aio.Channel, gateway: str, routes: LiveRoutes, inventory: Inventory
    ) -> None:
        self._stub = RouteServiceStub(channel)
        self._gateway = gateway
        self._routes = routes
        self._inventory = inventory
        self._stream = 0
        self._acked: Epoch | None = None
        self._inventories: list[int] = []
        self._wake = asyncio.Event()
        self._activity_due = False
        routes.activity.wake = self._activity

    def acked(self, epoch: Epoch) -> None:
        """Note that Envoy has taken everything up to `epoch`."""
        self._acked = epoch
        self._wake.set()

    async def run(self) -> None:
        """Keep the stream; ends only when it is cancelled."""
        shortest, longest = RECONNECT_SECONDS
        pause = shortest
        for self._stream in itertools.count(1):
            try:
                await self._one_stream()
                code, detail = "OK", "closed by the deployer"
            except grpc.aio.AioRpcError as error:
                raise_if_cancelled()
                code, detail = error.code().name, error.details()
            if self._routes.synced.is_set():  # said once, not at every try
                log.warning("routes_stream_broken", code=code, detail=detail)
                pause = shortest
            self._routes.stream_ended()
            await asyncio.sleep(pause)
            pause = min(2 * pause, longest)

    async def activate(self, function_id: str, wait: float) -> Route:
        """Ask what a function is. Raises `Refused` when it has no route, or nobody can be asked."""
        request = ActivateFunctionRequest(function_id=function_id, wait=Duration())
        request.wait.FromNanoseconds(max(0, round(wait * 1e9)))
        try:
            answer = await self._stub.ActivateFunction(
                request, timeout=wait + ACTIVATE_WAIT_SECONDS, wait_for_ready=True
            )
        except grpc.aio.AioRpcError as error:
            raise Refused(_problem(error)) from error
        return answer.route

    async def _one_stream(self) -> None:
        self._inventories.clear()
        call = self._stub.SyncRoutes(self._requests(self._stream))
        try:
            async for response in call:
                self._take(response)
        finally:
            call.cancel()

    def _take(self, response: SyncRoutesResponse) -> None:
        self._routes.apply(response, self._stream)
        if response.inventory_request:
            self._inventories.append(response.inventory_request)
            self._wake.set()

    async def _requests(self, stream: int) -> AsyncIterator[SyncRoutesRequest]:
        yield SyncRoutesRequest(hello=Hello(gateway=self._gateway))
        sent_version = 0
        activity_allowed = 0.0
        loop = asyncio.get_running_loop()
        while stream == self._stream:
            self._wake.clear()
            epoch = self._acked
            if epoch is not None and epoch.stream == stream and epoch.version != sent_version:
                sent_version = epoch.version
                yield SyncRoutesRequest(ack=RouteAck(version=sent_version))
            while self._inventories:
                yield SyncRoutesRequest(inventory=await self._take_inventory())
            timeout = None
            if self._activity_due:
                timeout = activity_allowed - loop.time()
                if timeout <= 0:
                    timeout = None
                    self._activity_due = False
                    activity_allowed = loop.time() + REPORT_EVERY_SECONDS
                    if report := self._routes.activity.report():
                        yield SyncRoutesRequest(activity=report)
            try:
                async with asyncio.timeout(timeout):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _take_inventory(self) -> RouteInventory:
        number = self._inventories.pop(0)
        # What the control process would answer for is a route as well, cluster or not.
        found = {*await self._inventory(), *self._routes.ids()}
        return RouteInventory(id=number, function_ids=sorted(found))

    def _activity(self) -> None:
        self._activity_due = True
        self._wake.set()


def _problem(error: grpc.aio.AioRpcError) -> Problem:
    if error.code() is grpc.StatusCode.NOT_FOUND:
        return NOT_FOUND
    if (
        error.code() is grpc.StatusCode.FAILED_PRECONDITION
        or from_rpc_error(error).reason == ErrorReason.ERROR_REASON_FUNCTION_ENDED
    ):
        return ENDED
    log.warning("activate_failed", code=error.code().name, detail=error.details())
    return CONTROL_AWAY
