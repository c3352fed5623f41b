"""The steps that bring one generation of one function from its row to an answering instance.

What a step did is put into the journal, and the next step begins without waiting for the write;
only the last one waits. A crash in between loses nothing but time: every step may be repeated.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

from mayfly.v1.build_pb2 import Artefact, Build
from mayfly.v1.function_pb2 import Function, LogEvent, StageEvent, State
from mayfly.v1.source_pb2 import Failure, Source, Stage
from opentelemetry.trace import Span, StatusCode, Tracer

from libs.store import Store
from services.deployer.builds import Builds, Order
from services.deployer.catalog import Catalog
from services.deployer.drivers.base import (
    Deployed,
    DeployFailed,
    Driver,
    DriverUnavailable,
    Endpoint,
    still_there,
)
from services.deployer.effective import kind_before_build, kind_of, lease_of, workload_of
from services.deployer.events import (
    Event,
    failure_event,
    lease_event,
    log_event,
    lost_image,
    stage_event,
    state_event,
    utcnow,
)
from services.deployer.journal import Change, Guard, Journal
from services.deployer.next_step import Deploy, Hold, Nothing, Prepare, World, next_step
from services.deployer.restoration import until_done
from services.deployer.rows import FunctionRow
from services.deployer.spans import span_of
from services.deployer.view import Viewpoint, error_body

STARTED = StageEvent.PROGRESS_STARTED
FINISHED = StageEvent.PROGRESS_FINISHED
FAILED = StageEvent.PROGRESS_FAILED
_UNAVAILABLE = 503
_MIB = 1024 * 1024
_NO_IMAGE = "IMAGE_PULL_FAILED"

# A handler's socket is the instances' own, a script's is put in place of the one it opens.
_OTHER_KIND = Failure(
    stage=Stage.STAGE_DEPLOY,
    reason="SOURCE_UNSUPPORTED",
    message="an update cannot turn a handler into a script, or a script into a handler",
    fix="create a function of another id, or delete this one first",
)


class Superseded(Exception):
    """The function has ended, has a newer generation, or is another replica's now."""


@dataclass
class Tools:
    """What steps work with."""

    store: Store
    journal: Journal
    catalog: Catalog
    driver: Driver
    builds: Builds
    tracer: Tracer
    viewpoint: Viewpoint
    routes_taken: Callable[[], Awaitable[str]]
    """Waits until the gateways have taken all routes so far; returns a few words on it."""
    reserved: set[str] = field(default_factory=set[str])
    """Functions whose sockets the driver has."""
    losses: int = 0
    """How often the driver has lost everything; it is given back what rows say at that moment."""


class Work:
    """One generation of one function."""

    def __init__(
        self, tools: Tools, replica: str, row: FunctionRow, source: Source | None = None
    ) -> None:
        self._tools = tools
        self._row = row
        self._spec = Function.FromString(row.spec)
        self._guard = Guard(owner=replica, generation=row.generation)
        self._updating = row.ready_generation > 0
        self._built_again = False
        self._routed: asyncio.Task[str] | None = None
        self._source = source or Source()

    async def run(self) -> None:
        """Do steps until there is none. Raises what a step that can be repeated raised."""
        try:
            while True:
                match next_step(self._row, self._world()):
                    case Prepare(reserve=reserve, build=build):
                        await self._prepare(reserve=reserve, build=build)
                    case Deploy():
                        await self._deploy()
                    case Hold():
                        await self._hold()
                    case Nothing():
                        return
        finally:
            if self._routed is not None:
                self._routed.cancel()

    def _world(self) -> World:
        artefact = Artefact.FromString(self._row.artefact or b"")
        has_socket = self._row.uid in self._tools.reserved and bool(self._row.endpoint)
        return World(
            reserved=has_socket or not self._tools.driver.reserves,
            artefact_present=not artefact.directory or Path(artefact.directory).exists(),
        )

    async def _prepare(self, *, reserve: bool, build: bool) -> None:
        if build:
            self._source = await self._read_source()
        artefact = Artefact.FromString(self._row.artefact or b"")
        early = kind_before_build(self._row.runtime, self._source) if build else kind_of(artefact)
        if not build:
            await self._reserve(early)
            return
        reserving = asyncio.create_task(self._reserve(early)) if reserve and early else None
        try:
            built = await self._build()
        except BaseException:
            if reserving is not None:
                reserving.cancel()
            raise
        finally:
            if reserving is not None:
                await asyncio.wait([reserving])
        if reserving is not None:
            reserving.result()
        if built.state == Build.STATE_FAILED:
            await self._fail(built.failure)
        else:
            self._take_build(built)

    async def _reserve(self, kind: str | None) -> None:
        if kind is None or kind == "image":
            await self._fail(
                Failure(
                    stage=Stage.STAGE_DEPLOY,
                    reason="SOURCE_UNSUPPORTED",
                    message="this machine's driver cannot start what was built",
                    fix="send a handler or a script, or use a cluster for images",
                )
            )
            return
        row = self._row
        losses = self._tools.losses
        endpoint = await self._tools.driver.reserve(row.uid, kind, row.endpoint or None)
        if losses == self._tools.losses:
            self._tools.reserved.add(row.uid)
        self._move(endpoint)

    def _move(self, endpoint: Endpoint) -> None:
        """Have the gateways take where the function is reached from now on."""
        self._row = replace(self._row, endpoint=str(endpoint))
        self._tools.catalog.foresee(self._row)
        self._put(Change(endpoint=str(endpoint)), [stage_event(Stage.STAGE_ROUTE, STARTED)])
        self._routed = asyncio.create_task(self._route())

    async def _route(self) -> str:
        begin = utcnow()
        with self._span("route"):
            detail = await self._tools.routes_taken()
        finished = stage_event(
            Stage.STAGE_ROUTE, FINISHED, duration=utcnow() - begin, detail=detail
        )
        self._put(None, [finished])
        return detail

    async def _read_source(self) -> Source:
        if self._source.WhichOneof("content"):
            return self._source
        store = self._tools.store
        async with store.connection() as connection:
            source = await store.queries.source_of(connection, uid=self._row.uid)
        if source is None:
            raise Superseded
        return Source.FromString(source)

    async def _build(self) -> Build:
        row = self._row
        self._enter(State.STATE_BUILDING)
        order = Order(row.name, row.uid, row.runtime, self._source, row.expire_time)
        with self._span("build") as span:
            built = await self._tools.builds.build(order, lambda events: self._put(None, events))
            span.set_attribute("mayfly.build", built.name)
            if built.state == Build.STATE_FAILED:
                _mark(span, built.failure)
        return built

    def _take_build(self, built: Build) -> None:
        """Keep what was built, and take what the script's own table says of its lease."""
        row = self._row
        artefact = built.artefact.SerializeToString()
        change = Change(build=built.name, artefact=artefact)
        events: list[Event] = []
        lease = lease_of(
            self._spec, built.artefact.settings, self._tools.viewpoint.defaults.max_ttl
        )
        if not self._updating:
            change.idle_timeout = lease.idle_timeout
            if lease.ttl is not None and lease.ttl != row.ttl and not row.hold_due:
                change.ttl = lease.ttl
                expire_time = row.create_time + lease.ttl
                events.append(lease_event(expire_time))
                change.held = False
                self._row = replace(
                    self._row, ttl=lease.ttl, expire_time=expire_time, hold_due=True
                )
        self._row = replace(self._row, build=built.name, artefact=artefact)
        self._put(change, events)

    async def _deploy(self) -> None:
        row = self._row
        artefact = Artefact.FromString(row.artefact or b"")
        serving = Artefact.FromString(row.serving_artefact or b"")
        kinds = {kind_of(artefact), kind_of(serving)}
        driver = self._tools.driver
        if driver.reserves and self._updating and "script" in kinds and len(kinds) > 1:
            await self._fail(_OTHER_KIND)
            return
        url = self._tools.viewpoint.url(row.id)
        workload = workload_of(
            row.id, row.uid, row.generation, self._spec, artefact, url,
            self._tools.viewpoint.defaults,
        )  # fmt: skip
        losses = self._tools.losses
        self._enter(State.STATE_DEPLOYING)
        begin = utcnow()
        self._put(None, [stage_event(Stage.STAGE_DEPLOY, STARTED, time=begin)])
        with self._span("deploy") as span:
            try:
                # What an update takes the place of is reached there, and answers until then.
                early = None if self._updating else self._move
                deployed = await driver.deploy(workload, early)
            except DeployFailed as error:
                failure = _deploy_failure(error)
                _mark(span, failure)
                event = stage_event(Stage.STAGE_DEPLOY, FAILED, duration=utcnow() - begin)
                self._put(None, [event])
                if error.reason != _NO_IMAGE or not await self._builds_again():
                    await self._fail(failure)
                return
            span.set_attribute("mayfly.instance", deployed.instance)
        finished = stage_event(
            Stage.STAGE_DEPLOY, FINISHED, duration=utcnow() - begin, detail=_detail(deployed)
        )
        self._put(None, [finished])
        if deployed.endpoint is not None and self._routed is None:
            self._move(deployed.endpoint)
        await self._ready()
        if deployed.endpoint is not None:
            await driver.settle(row.uid, row.generation)
        if losses != self._tools.losses:
            # What was lost was given back by rows that did not say READY yet.
            endpoints = {row.uid: Endpoint(self._row.endpoint)}
            await until_done(
                lambda: self._tools.driver.restore([workload], endpoints), "restore_late"
            )

    async def _builds_again(self) -> bool:
        """Forget a build whose image is gone, so that it is made anew; False where it is not gone.

        Its build may have ended meanwhile, since nobody could tell the builder of a renewal.
        """
        self._row = row = self._written(await self._write(Change(), []))
        builds, build = self._tools.builds, row.build
        if self._built_again or not build:
            return False
        if await builds.hold(build, row.uid, row.expire_time) and not await builds.lost_images(
            [build]
        ):
            return False
        if not self._updating:
            # Pods that failed to pull the same image would be taken for the new ones.
            removed = await self._tools.driver.remove([row.uid])
            if left := still_there(removed[row.uid]):
                raise DriverUnavailable(left)
        self._built_again = True
        said = log_event(LogEvent.ORIGIN_PLATFORM, lost_image(build))
        self._row = self._written(await self._write(Change(artefact=b""), [said]))
        return True

    async def _ready(self) -> None:
        if self._routed is not None:
            await self._routed
        row = self._row
        change = Change(
            state=State.STATE_READY,
            ready=row.generation,
            serving_spec=row.spec,
            failure=b"",
            instances=None if self._updating else 1,
            release=not row.hold_due,
        )
        old_build = row.serving_build
        event = state_event(State.STATE_READY)
        # The build is repeated so that what serves is told apart from what is being built.
        change.build, change.artefact = row.build, row.artefact
        self._row = self._written(await self._write(change, [event]))
        if old_build and old_build != row.build:
            await self._tools.builds.release(row.uid, old_build)

    async def _hold(self) -> None:
        row = self._row
        build = row.serving_build or row.build
        there = True
        if build:
            there = await self._tools.builds.hold(build, row.uid, row.expire_time)
        change = Change(held=True, release=True)
        if not there and row.state in (State.STATE_READY, State.STATE_IDLE):
            serving = Artefact.FromString(row.serving_artefact or b"")
            if serving.image:
                # As an update of the same source: what runs answers until the new image does.
                change.again, change.artefact = True, b""
            elif serving.directory:  # a bundle is in the row itself
                change.ready, change.release = 0, False
        self._row = self._written(await self._write(change, []))

    async def _fail(self, failure: Failure) -> None:
        row = self._row
        failed = failure_event(failure)
        change = Change(failed=row.generation, failure=failure.SerializeToString())
        if self._updating:
            # What served goes on; the state event says that the update is over.
            change.release = True
            state = State.STATE_IDLE if row.state == State.STATE_IDLE else State.STATE_READY
            self._row = self._written(await self._write(change, [failed, state_event(state)]))
            return
        change.state, change.endpoint = State.STATE_FAILED, ""
        event = state_event(State.STATE_FAILED)
        self._tools.catalog.foresee(
            replace(self._row, state=State.STATE_FAILED, endpoint="", failure=change.failure)
        )
        writing = asyncio.create_task(self._write(change, [failed, event]))
        if row.uid in self._tools.reserved or not self._tools.driver.reserves:
            self._tools.reserved.discard(row.uid)
            body = error_body(failure)
            await until_done(
                lambda: self._tools.driver.fail(row.uid, _UNAVAILABLE, body), "fail_late"
            )
        self._row = self._written(await writing)
        # Not before: a task without its claim is stopped, and would leave what is being removed.
        self._row = self._written(await self._write(Change(release=True), []))

    def _enter(self, state: State.ValueType) -> None:
        """Say how far it is; a function that serves stays READY while its update is made."""
        if self._updating or self._row.state == state:
            return
        self._row = replace(self._row, state=state)
        self._put(Change(state=state), [state_event(state)])

    def _put(self, change: Change | None, events: Sequence[Event]) -> None:
        self._tools.journal.put(self._row.uid, change, events, self._guard)

    async def _write(self, change: Change, events: Sequence[Event]) -> FunctionRow | None:
        return await self._tools.journal.write(self._row.uid, change, events, self._guard)

    @staticmethod
    def _written(row: FunctionRow | None) -> FunctionRow:
        if row is None:
            raise Superseded
        return row

    def _span(self, name: str) -> AbstractContextManager[Span]:
        row = self._row
        return span_of(self._tools.tracer, row.traceparent, name, row.id, row.uid)


def _mark(span: Span, failure: Failure) -> None:
    span.set_status(StatusCode.ERROR, f"{failure.reason}: {failure.message}")


def _deploy_failure(error: DeployFailed) -> Failure:
    return Failure(
        stage=Stage.STAGE_DEPLOY,
        reason=error.reason,
        message=error.message,
        fix=error.fix,
        log_tail=error.log_tail,
        exit_code=error.exit_code,
    )


def _detail(deployed: Deployed) -> str:
    return deployed.detail or f"process, {deployed.memory_bytes / _MIB:.1f} MiB"
