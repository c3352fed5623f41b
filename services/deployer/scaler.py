"""Gives functions as many instances as their use asks for, where the driver does not by itself.

Runs on one replica at a time. It looks once a second, as often as gateways report; a request that
comes to a sleeping function is not its business: the gateway wakes it by ActivateFunction.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import structlog
from mayfly.v1.build_pb2 import Artefact
from mayfly.v1.function_pb2 import Function, State

from libs.store import Store, StoreUnavailable
from services.deployer.drivers.base import DriverUnavailable, Endpoint, Scales
from services.deployer.effective import Defaults, filled
from services.deployer.events import state_event
from services.deployer.journal import Change, Guard, Journal, mask_of
from services.deployer.rows import row_of
from services.deployer.scaling import Bounds, Load, desired_instances, needed_instances

log = structlog.get_logger()

_LOOK_SECONDS = 1.0
_WAS_READY = Guard(mask=mask_of([State.STATE_READY]))
_WAS_IDLE = Guard(mask=mask_of([State.STATE_IDLE]))


@dataclass(frozen=True)
class Serving:
    """A function as its row and the gateways' counts have it; `unused` is in seconds."""

    uid: str
    generation: int
    endpoint: str
    now: datetime
    in_flight: int
    unused: float

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where its instances answer."""
        endpoint = Endpoint.parse(self.endpoint)
        return (endpoint.address, *endpoint.others) if endpoint.address else ()


@dataclass
class Memory:
    """What is known of a function from one look to the next."""

    generation: int
    bounds: Bounds
    asked: int = 0
    """Instances that it was given; 0: not by this scaler."""
    calm_since: float = field(default=0.0)
    """By the monotonic clock; 0: all that there are are needed."""
    acting: bool = False


class Scaler:
    """routes_taken: returns when the gateways have taken all routes so far."""

    def __init__(
        self,
        store: Store,
        driver: Scales,
        journal: Journal,
        defaults: Defaults,
        target: str,
        routes_taken: Callable[[], Awaitable[str]],
    ) -> None:
        self._store = store
        self._driver = driver
        self._journal = journal
        self._defaults = defaults
        self._target = target
        self._routes_taken = routes_taken
        self._known: dict[str, Memory] = {}
        self._acting: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Scale without end."""
        try:
            while True:
                try:
                    await self.look()
                except StoreUnavailable as error:
                    log.warning("scaler_waits_for_store", error=str(error))
                await asyncio.sleep(_LOOK_SECONDS)
        finally:
            for task in self._acting:
                task.cancel()
            self._known.clear()

    async def look(self) -> None:
        """Look at all functions that serve, and begin to do what is to be done."""
        functions = await self._read()
        await self._remember(functions)
        for function in functions:
            memory = self._known.get(function.uid)
            if memory is not None and not memory.acting:
                self._decide(function, memory)

    def _decide(self, function: Serving, memory: Memory) -> None:
        current = memory.asked or max(1, len(function.addresses))
        now = time.monotonic()
        if needed_instances(function.in_flight, memory.bounds) >= current:
            memory.calm_since = 0.0
        else:
            memory.calm_since = memory.calm_since or now
        calm = now - memory.calm_since if memory.calm_since else 0.0
        load = Load(function.in_flight, function.unused, calm)
        wanted = desired_instances(current, load, memory.bounds)
        if wanted == 0:
            self._begin(memory, self._sleep(function, memory))
        elif wanted < current:
            self._begin(memory, self._fewer(function, memory, wanted))
        elif wanted > current:
            self._begin(memory, self._more(function, memory, wanted))

    def _begin(self, memory: Memory, work: Coroutine[Any, Any, None]) -> None:
        memory.acting = True

        async def act() -> None:
            try:
                await work
            except (DriverUnavailable, StoreUnavailable) as error:
                log.warning("not_scaled", error=str(error))
            finally:
                memory.acting = False

        task = asyncio.create_task(act(), name="scale")
        self._acting.add(task)
        task.add_done_callback(self._acting.discard)

    async def _more(self, function: Serving, memory: Memory, wanted: int) -> None:
        await self._driver.scale(function.uid, wanted, function.addresses)
        memory.asked = wanted

    async def _fewer(self, function: Serving, memory: Memory, wanted: int) -> None:
        """Those that go are not routed to any more when they are told to end."""
        first, *others = function.addresses[:wanted] or ("",)
        keep = Endpoint(first, tuple(others))
        if first and len(function.addresses) > wanted:
            change = Change(endpoint=str(keep))
            if await self._journal.write(function.uid, change, (), _WAS_READY) is None:
                return
            await self._routes_taken()
        await self._driver.scale(function.uid, wanted, (keep.address, *keep.others))
        memory.asked, memory.calm_since = wanted, 0.0

    async def _sleep(self, function: Serving, memory: Memory) -> None:
        """First nothing is routed to it; then, if nobody came in between, its instances end."""
        change = Change(state=State.STATE_IDLE, endpoint="", instances=0)
        event = state_event(State.STATE_IDLE)
        if await self._journal.write(function.uid, change, [event], _WAS_READY) is None:
            return
        await self._routes_taken()
        memory.asked, memory.calm_since = 0, 0.0
        if await self._is_still_unused(function) and await self._slept(function.uid):
            return
        change = Change(
            state=State.STATE_READY, endpoint=function.endpoint, instances=len(function.addresses)
        )
        event = state_event(State.STATE_READY)
        await self._journal.write(function.uid, change, [event], _WAS_IDLE)

    async def _slept(self, uid: str) -> bool:
        try:
            await self._driver.sleep(uid)
        except DriverUnavailable as error:
            log.info("stays_awake", uid=uid, error=str(error))
            return False
        return True

    async def _is_still_unused(self, function: Serving) -> bool:
        async with self._store.connection() as connection:
            return bool(
                await self._store.queries.is_still_unused(
                    connection, uid=function.uid, since=function.now
                )
            )

    async def _read(self) -> list[Serving]:
        async with self._store.connection() as connection:
            records = self._store.queries.serving_functions(connection, target=self._target)
            return [
                Serving(
                    record["uid"], record["ready_generation"], record["endpoint"],
                    record["now"], record["in_flight"], max(0.0, record["unused"]),
                )
                async for record in records
            ]  # fmt: skip

    async def _remember(self, functions: list[Serving]) -> None:
        """Read the bounds of functions that are new or have changed; forget those that are gone."""
        there = {function.uid for function in functions}
        for uid in [uid for uid in self._known if uid not in there]:
            if not self._known[uid].acting:
                del self._known[uid]
        fresh = [
            function.uid
            for function in functions
            if function.uid not in self._known
            or self._known[function.uid].generation != function.generation
        ]
        if not fresh:
            return
        async with self._store.connection() as connection:
            records = self._store.queries.functions_by_uid(connection, uids=fresh)
            rows = [row_of(record) async for record in records]
        for row in rows:
            spec = Function.FromString(row.serving_spec or row.spec)
            artefact = Artefact.FromString(row.serving_artefact or b"")
            full = filled(spec, artefact.settings, self._defaults)
            bounds = Bounds(
                full.concurrency, full.min_instances, full.max_instances,
                self._defaults.idle_stop.total_seconds(),
            )  # fmt: skip
            self._known[row.uid] = Memory(row.ready_generation, bounds)
