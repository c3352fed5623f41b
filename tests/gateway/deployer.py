"""A deployer, builder and janitor for tests: the real contracts, with a dictionary for a store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mayfly.v1 import (
    build_pb2,
    build_pb2_grpc,
    function_pb2,
    function_pb2_grpc,
    janitor_pb2,
    janitor_pb2_grpc,
    route_pb2,
    route_pb2_grpc,
)
from mayfly.v1.error_pb2 import ErrorReason
from mayfly.v1.function_pb2 import Protocol, State

from libs.rpc.errors import MayflyError
from libs.rpc.server import Server

SERVICES = ("mayfly.v1.FunctionService", "mayfly.v1.BuildService", "mayfly.v1.JanitorService")


def route(
    function_id: str,
    endpoint: str,
    *,
    uid: str = "",
    ttl: float = 600.0,
    timeout: float = 30.0,
    state: State.ValueType = State.STATE_READY,
    protocol: Protocol.ValueType = Protocol.PROTOCOL_HTTP1,
    one_request_per_connection: bool = False,
    traceparent: str = "",
    others: Sequence[str] = (),
    host: str = "",
    cold: bool = False,
) -> route_pb2.Route:
    """A route; `ttl` and `timeout` in seconds from now; `others`: endpoints beside the first."""
    made = route_pb2.Route(
        function_id=function_id,
        uid=uid or f"uid-{function_id}",
        state=state,
        endpoint=endpoint,
        protocol=protocol,
        one_request_per_connection=one_request_per_connection,
        traceparent=traceparent,
        endpoints=[endpoint, *others] if others else [],
        host=host,
        cold=cold,
    )
    made.expire_time.FromNanoseconds(int((time.time() + ttl) * 1e9))
    made.timeout.FromNanoseconds(int(timeout * 1e9))
    return made


@dataclass
class Gateway:
    """One connected gateway, as the deployer sees it."""

    name: str
    queue: asyncio.Queue[route_pb2.SyncRoutesResponse] = field(default_factory=asyncio.Queue)
    acked: int = 0


class Deployer(
    route_pb2_grpc.RouteServiceServicer,
    function_pb2_grpc.FunctionServiceServicer,
    build_pb2_grpc.BuildServiceServicer,
    janitor_pb2_grpc.JanitorServiceServicer,
):
    """Holds routes, hands them out, and records what gateways say."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.routes: dict[str, route_pb2.Route] = {}
        self.ended: set[str] = set()
        self.version = 1
        self.gateways: list[Gateway] = []
        self.activity: list[route_pb2.FunctionActivity] = []
        self.inventories: dict[int, list[str]] = {}
        self.activations: list[str] = []
        self.changed = asyncio.Condition()
        self.metadata: dict[str, str] = {}
        self.watch_gate = asyncio.Event()
        self.snapshot_chunk = 500
        # What happens when any function is asked for, while the question waits.
        self.asked: Callable[[str], Awaitable[None]] | None = None
        # The same for a cold one.
        self.wake: Callable[[str], Awaitable[None]] | None = None
        self._server: Server | None = None

    async def start(self, also: Callable[[Any], None] | None = None) -> None:
        """Serve; `also` may add services."""
        server = Server(self.address, SERVICES)
        if also is not None:
            server.add(lambda _, inner: also(inner), None)
        server.add(route_pb2_grpc.add_RouteServiceServicer_to_server, self)
        server.add(function_pb2_grpc.add_FunctionServiceServicer_to_server, self)
        server.add(build_pb2_grpc.add_BuildServiceServicer_to_server, self)
        server.add(janitor_pb2_grpc.add_JanitorServiceServicer_to_server, self)
        self.address = await server.start()
        await server.health.set_all(True)
        self._server = server

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(0)
            self._server = None

    # What a test does.

    async def put(self, *routes: route_pb2.Route, wait: bool = True) -> None:
        """Add or change routes; return when every gateway has acknowledged."""
        for one in routes:
            self.routes[one.function_id] = one
            self.ended.discard(one.function_id)
        await self._send(route_pb2.SyncRoutesResponse(upserts=routes), wait)

    async def remove(self, function_id: str, *, uid: str = "", wait: bool = True) -> None:
        gone = self.routes.pop(function_id)
        self.ended.add(function_id)
        removed = route_pb2.RemovedRoute(function_id=function_id, uid=uid or gone.uid)
        await self._send(route_pb2.SyncRoutesResponse(removals=[removed]), wait)

    async def ask_inventory(self, number: int) -> list[str]:
        await self._send(route_pb2.SyncRoutesResponse(inventory_request=number), wait=False)
        await self.until(lambda: number in self.inventories)
        return self.inventories[number]

    async def until(self, condition: Any, seconds: float = 10.0) -> None:
        """Wait until what gateways said makes `condition()` true."""
        async with asyncio.timeout(seconds), self.changed:
            await self.changed.wait_for(condition)

    async def connected(self) -> None:
        await self.until(lambda: self.gateways and self.gateways[-1].acked >= 1)

    def in_flight(self, function_id: str) -> int:
        """The last reported number."""
        found = [a.in_flight for a in self.activity if a.function_id == function_id]
        return found[-1] if found else 0

    def requests(self, function_id: str) -> int:
        return sum(a.requests for a in self.activity if a.function_id == function_id)

    async def _send(self, response: route_pb2.SyncRoutesResponse, wait: bool) -> None:
        self.version += 1
        version = response.version = self.version
        for gateway in self.gateways:
            gateway.queue.put_nowait(response)
        if wait:
            await self.until(lambda: all(g.acked >= version for g in self.gateways))

    async def _notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    # RouteService.

    async def SyncRoutes(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        first = await anext(request_iterator)
        gateway = Gateway(first.hello.gateway)
        snapshot = list(self.routes.values())
        chunk = self.snapshot_chunk
        for start in range(0, len(snapshot), chunk) or (0,):
            yield route_pb2.SyncRoutesResponse(
                version=self.version,
                snapshot=True,
                upserts=snapshot[start : start + chunk],
                snapshot_complete=start + chunk >= len(snapshot),
            )
        self.gateways.append(gateway)
        reading = asyncio.create_task(self._read(gateway, request_iterator))
        await self._notify()
        try:
            while True:
                yield await gateway.queue.get()
        finally:
            reading.cancel()
            self.gateways.remove(gateway)
            await self._notify()

    async def _read(self, gateway: Gateway, requests: Any) -> None:
        async for request in requests:
            kind = request.WhichOneof("kind")
            if kind == "ack":
                gateway.acked = request.ack.version
            elif kind == "activity":
                self.activity.extend(request.activity.functions)
            elif kind == "inventory":
                self.inventories[request.inventory.id] = list(request.inventory.function_ids)
            await self._notify()

    async def ActivateFunction(self, request: Any, context: Any) -> Any:
        self.activations.append(request.function_id)
        await self._notify()
        if self.asked is not None:
            await self.asked(request.function_id)
        if request.function_id in self.ended:
            raise MayflyError(ErrorReason.ERROR_REASON_FUNCTION_ENDED, "its lease has ended")
        found = self.routes.get(request.function_id)
        if found is None:
            raise MayflyError(ErrorReason.ERROR_REASON_NOT_FOUND, "no such function")
        if found.cold and self.wake is not None:
            await self.wake(request.function_id)
        return route_pb2.ActivateFunctionResponse(route=self.routes[request.function_id])

    # FunctionService.

    async def CreateFunction(self, request: Any, context: Any) -> Any:
        self.metadata = {k: v for k, v in context.invocation_metadata() if isinstance(v, str)}
        function = function_pb2.Function()
        function.CopyFrom(request.function)
        function.name = f"functions/{request.function_id}"
        function.state = State.STATE_PENDING
        if function.runtime == "cobol":
            raise MayflyError(
                ErrorReason.ERROR_REASON_UNKNOWN_RUNTIME,
                "there is no runtime cobol",
                fix="use python",
                field="function.runtime",
            )
        return function_pb2.CreateFunctionResponse(function=function)

    async def GetFunction(self, request: Any, context: Any) -> Any:
        if request.name != "functions/hello":
            raise MayflyError(ErrorReason.ERROR_REASON_NOT_FOUND, f"no {request.name}", fix="list")
        return function_pb2.GetFunctionResponse(function=function_pb2.Function(name=request.name))

    async def ListFunctions(self, request: Any, context: Any) -> Any:
        names = [request.filter, str(request.page_size)]
        return function_pb2.ListFunctionsResponse(
            functions=[function_pb2.Function(name=name) for name in names]
        )

    async def WatchFunction(self, request: Any, context: Any) -> AsyncIterator[Any]:
        for sequence in (1, 2):
            yield function_pb2.WatchFunctionResponse(
                event=function_pb2.FunctionEvent(sequence=sequence)
            )
            if sequence == 1:
                await self.watch_gate.wait()

    # BuildService and JanitorService.

    async def ListRuntimes(self, request: Any, context: Any) -> Any:
        return build_pb2.ListRuntimesResponse(
            runtimes=[build_pb2.Runtime(name="python", available=True)]
        )

    async def CreateBuild(self, request: Any, context: Any) -> Any:
        return build_pb2.CreateBuildResponse()

    async def GetStatus(self, request: Any, context: Any) -> Any:
        return janitor_pb2.GetStatusResponse(deadlines=7)
