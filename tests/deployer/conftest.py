"""A deployer that serves over real gRPC, with a real PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from mayfly.v1 import (
    function_pb2,
    function_pb2_grpc,
    reclaimer_pb2,
    reclaimer_pb2_grpc,
    route_pb2,
    route_pb2_grpc,
)
from mayfly.v1.function_pb2 import Function, State

from libs.rpc.channel import connect
from services.deployer.app import serve
from services.deployer.config import Settings

from .recording_driver import RecordingDriver
from .tiny_builder import TinyBuilder

HANDLER = "def handler(event, ctx):\n    return 1\n"


@dataclass
class Running:
    """A deployer in a task of the test's loop, and stubs for its services."""

    settings: Settings
    driver: RecordingDriver
    address: str
    stop: asyncio.Event
    task: asyncio.Task[None]
    channel: grpc.aio.Channel
    functions: Any = field(init=False)
    routes: Any = field(init=False)
    reclaimer: Any = field(init=False)

    def __post_init__(self) -> None:
        self.functions = function_pb2_grpc.FunctionServiceStub(self.channel)
        self.routes = route_pb2_grpc.RouteServiceStub(self.channel)
        self.reclaimer = reclaimer_pb2_grpc.ReclaimerServiceStub(self.channel)

    async def create(self, function_id: str = "", **fields: Any) -> Function:
        """Create a function; `handler` unless another source is given."""
        request_id = fields.pop("request_id", "")
        ttl = fields.pop("ttl", None)
        idle = fields.pop("idle_timeout", None)
        if not fields.keys() & {"handler", "script", "archive", "image"}:
            fields["handler"] = HANDLER
        function = Function(**fields)
        if ttl is not None:
            function.ttl.FromMicroseconds(int(ttl * 1e6))
        if idle is not None:
            function.idle_timeout.FromMicroseconds(int(idle * 1e6))
        request = function_pb2.CreateFunctionRequest(
            function=function, function_id=function_id, request_id=request_id
        )
        return (await self.functions.CreateFunction(request)).function

    async def get(self, function_id: str) -> Function:
        """Return a function."""
        request = function_pb2.GetFunctionRequest(name=f"functions/{function_id}")
        return (await self.functions.GetFunction(request)).function

    async def delete(self, function_id: str) -> Function:
        """Delete a function."""
        request = function_pb2.DeleteFunctionRequest(name=f"functions/{function_id}")
        return (await self.functions.DeleteFunction(request)).function

    async def settle(self, function_id: str, after: int = 0) -> list[Any]:
        """Watch until settled; return the events."""
        request = function_pb2.WatchFunctionRequest(
            name=f"functions/{function_id}", after=after, until_settled=True
        )
        async with asyncio.timeout(15):
            return [m.event async for m in self.functions.WatchFunction(request)]

    async def ready(self, function_id: str, **fields: Any) -> Function:
        """Create a function and return it once it is READY."""
        await self.create(function_id, **fields)
        await self.settle(function_id)
        function = await self.get(function_id)
        assert function.state == State.STATE_READY, function
        return function

    async def reclaim(self, *targets: Function) -> list[Any]:
        """Ask as the janitor does."""
        request = reclaimer_pb2.ReclaimRequest(
            targets=[reclaimer_pb2.ReclaimTarget(name=f.name, uid=f.uid) for f in targets]
        )
        return list((await self.reclaimer.Reclaim(request)).outcomes)

    async def end(self) -> None:
        """Stop it in order."""
        self.stop.set()
        await self.task
        await self.channel.close()

    async def kill(self) -> None:
        """End it without order, as far as one process can end a part of itself."""
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task
        await self.channel.close()


class Gateway:
    """The deployer's side of a gateway: takes routes, acknowledges, reports."""

    def __init__(self, running: Running, name: str = "gateway-1", *, acks: bool = True) -> None:
        self.routes: dict[str, route_pb2.Route] = {}
        self.removed: list[route_pb2.RemovedRoute] = []
        self.messages: list[route_pb2.SyncRoutesResponse] = []
        self.changed = asyncio.Condition()
        self.complete = False
        self.acks = acks
        self.leftovers: list[str] = []
        self._call = running.routes.SyncRoutes()
        self._name = name
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        hello = route_pb2.Hello(gateway=self._name)
        await self._call.write(route_pb2.SyncRoutesRequest(hello=hello))
        with contextlib.suppress(
            grpc.aio.AioRpcError, asyncio.CancelledError, asyncio.InvalidStateError
        ):
            async for message in self._call:
                async with self.changed:
                    self._take(message)
                    self.changed.notify_all()
                if message.inventory_request:
                    ids = [*self.routes, *self.leftovers]
                    inventory = route_pb2.RouteInventory(
                        id=message.inventory_request, function_ids=ids
                    )
                    await self._call.write(route_pb2.SyncRoutesRequest(inventory=inventory))
                if self.acks:
                    ack = route_pb2.RouteAck(version=message.version)
                    await self._call.write(route_pb2.SyncRoutesRequest(ack=ack))

    def _take(self, message: route_pb2.SyncRoutesResponse) -> None:
        self.messages.append(message)
        for route in message.upserts:
            self.routes[route.function_id] = route
        for removed in message.removals:
            self.removed.append(removed)
            known = self.routes.get(removed.function_id)
            if known is not None and known.uid == removed.uid:
                del self.routes[removed.function_id]
        self.complete = self.complete or message.snapshot_complete

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return when `condition` holds."""
        async with asyncio.timeout(10), self.changed:
            await self.changed.wait_for(condition)

    async def report(self, *uses: route_pb2.FunctionActivity) -> None:
        """Report use."""
        report = route_pb2.ActivityReport(functions=uses)
        await self._call.write(route_pb2.SyncRoutesRequest(activity=report))

    async def leave(self) -> None:
        """Break the stream off."""
        self._call.cancel()
        await self._task


async def eventually(condition: Callable[[], Any], seconds: float = 10) -> Any:
    """Return what `condition` gives once that is true; it may be a coroutine function."""
    async with asyncio.timeout(seconds):
        while True:
            value = condition()
            if asyncio.iscoroutine(value):
                value = await value
            if value:
                return value
            await asyncio.sleep(0.01)


@pytest.fixture
def directory() -> Any:
    """A directory with a path short enough for unix sockets."""
    with tempfile.TemporaryDirectory(prefix="mayfly-d-") as path:
        yield Path(path)


@pytest_asyncio.fixture
async def builder(directory: Path) -> AsyncIterator[TinyBuilder]:
    """A builder that serves."""
    made = TinyBuilder(directory / "builds")
    await made.start(f"unix:{directory}/builder")
    yield made
    await made.stop()


Start = Callable[..., Awaitable[Running]]


@pytest_asyncio.fixture
async def start(directory: Path, database_url: str) -> AsyncIterator[Start]:
    """Starts deployers; each is stopped at the end."""
    started: list[Running] = []

    async def start_one(name: str = "one", driver: Any = None, **settings: Any) -> Running:
        settings.setdefault("database_url", database_url)
        made = Settings(
            data_dir=directory,
            deployer_listen=f"unix:{directory}/{name}",
            builder_address=f"unix:{directory}/builder",
            replica=name,
            **settings,
        )
        driver = driver or RecordingDriver(directory / "functions")
        stop = asyncio.Event()
        ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(serve(made, stop, ready.set_result, driver))
        await asyncio.wait([task, ready], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        running = Running(made, driver, ready.result(), stop, task, connect(ready.result()))
        started.append(running)
        return running

    yield start_one
    for running in started:
        if not running.task.done():
            await running.end()


@pytest_asyncio.fixture
async def deployer(start: Start, builder: TinyBuilder) -> Running:
    """One deployer and its builder."""
    return await start()
