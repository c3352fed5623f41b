"""Puts the deployer together and runs it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc
import structlog
from mayfly.v1.function_pb2_grpc import add_FunctionServiceServicer_to_server
from mayfly.v1.reclaimer_pb2_grpc import add_ReclaimerServiceServicer_to_server
from mayfly.v1.route_pb2_grpc import add_RouteServiceServicer_to_server
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceStub,
    add_TraceServiceServicer_to_server,  # pyright: ignore[reportUnknownVariableType]
)

from libs.rpc.channel import connect
from libs.rpc.process import StartError
from libs.rpc.server import AddressInUse, Server
from libs.store import Store, StoreUnavailable
from libs.store.start import Schema, start_store
from libs.telemetry import Telemetry, metrics, setup
from services.deployer.activity import Activity
from services.deployer.builds import Builds
from services.deployer.catalog import Catalog
from services.deployer.config import Settings
from services.deployer.drivers.base import Driver, Scales
from services.deployer.drivers.choice import driver_of
from services.deployer.effective import Defaults
from services.deployer.events import utcnow
from services.deployer.housekeeping import keep_house
from services.deployer.journal import Journal
from services.deployer.lookup import Lookup
from services.deployer.lost_images import LostImages
from services.deployer.metrics import DeployerCollector, register
from services.deployer.notifications import Instances, follow
from services.deployer.readiness import watch_store
from services.deployer.reclaimer import ReclaimerService, Reclamation
from services.deployer.reconciler import Reconciler, Terms
from services.deployer.replicas import Replicas
from services.deployer.restoration import Restoration, until_done
from services.deployer.role import Role
from services.deployer.routes import Gateways, RouteService
from services.deployer.rows import FunctionRow
from services.deployer.scaler import Scaler
from services.deployer.service import FunctionService, Rules
from services.deployer.steps import Tools
from services.deployer.traces import Traces, TraceSink
from services.deployer.validation import Bounds
from services.deployer.view import Viewpoint
from services.deployer.wakeups import Wakeups

log = structlog.get_logger()

HERE = Path(__file__).parent
SCHEMA = Schema("deployer", HERE / "queries.sql", HERE / "migrations")
SERVICES = (
    "mayfly.v1.FunctionService",
    "mayfly.v1.RouteService",
    "mayfly.v1.ReclaimerService",
)
NEED_STORE = ("mayfly.v1.FunctionService", "mayfly.v1.ReclaimerService")
_GRACE_SECONDS = 2.0
_DRAIN_SECONDS = 3.0
_FLUSH_MILLISECONDS = 1000
_POOL = 16


async def serve(
    settings: Settings,
    stop: asyncio.Event,
    ready: Callable[[str], None] | None = None,
    driver: Driver | None = None,
) -> None:
    """Run a deployer until `stop` is set; `ready` gets the address once it serves.

    `driver` is the one that the settings name unless another one is given. Raises `StartError`.
    """
    own = settings.deployer_address or settings.deployer_listen
    endpoints = [own, *([settings.otlp_endpoint] if settings.otlp_endpoint else [])]
    telemetry = setup("deployer", endpoints, log_level=settings.log_level)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(asyncio.to_thread, telemetry.shutdown)
        store = await start_store(
            settings.database_url, SCHEMA, settings.database_wait, min_size=2, max_size=_POOL
        )
        stack.push_async_callback(store.close)
        deployer = Deployer(settings, store, driver or driver_of(settings), telemetry)
        stack.callback(_serve_metrics(settings, deployer))
        await stack.enter_async_context(deployer.running(ready))
        await stop.wait()
        log.info("stopping")


class Deployer:
    """The parts of one deployer, wired."""

    def __init__(
        self, settings: Settings, store: Store, driver: Driver, telemetry: Telemetry
    ) -> None:
        tracer = telemetry.tracer
        self._provider = telemetry.provider
        replica = settings.replica_name
        viewpoint = Viewpoint(settings.url, _defaults(settings))
        self.settings = settings
        self.driver = driver
        self.restored = asyncio.Event()
        self.wakeups = Wakeups()
        self.gateways = Gateways()
        self.catalog = Catalog(viewpoint.defaults)
        self.journal = Journal(store, replica, self.take_rows)
        self.channel = connect(settings.builder_address, telemetry.provider)
        self._store = store
        builds = Builds(self.channel)
        lookup = Lookup(store, viewpoint.defaults)
        started = utcnow()

        def idle_floor():
            return started + settings.idle_grace

        tools = Tools(
            store, self.journal, self.catalog, driver, builds, tracer, viewpoint,
            self._routes_taken,
        )  # fmt: skip
        terms = Terms(settings.target, replica, settings.claim, settings.concurrent_steps)
        self.reconciler = Reconciler(store, self.catalog, tools, terms)
        self.instances = Instances(self.journal)
        self.scaler = (
            Scaler(
                store, driver, self.journal, viewpoint.defaults, settings.target,
                self._routes_taken,
            )
            if isinstance(driver, Scales)
            else None
        )  # fmt: skip
        self.role = Role(store, f"driver of {settings.target}", replica)
        self.restoration = Restoration(
            store, lookup, driver, self.journal, viewpoint, settings.target, tools.reserved,
            self.take_rows,
        )  # fmt: skip
        self.lost_images = LostImages(
            store, builds, settings.target, settings.image_look.total_seconds(),
            self.instances.take,
        )  # fmt: skip
        self.activity = Activity(store, driver, replica, self.take_rows)
        self._tools = tools
        self.replicas = Replicas(
            store, replica, lookup, self.restoration, self.wakeups, self.take_rows,
            self.reconciler.look, self.journal.drained, self.gateways.all_taken,
            self.gateways.inventories,
        )  # fmt: skip
        traces = Traces(store)
        # Untraced: a span for each export of spans would itself be exported, without end.
        self.collector = (
            grpc.aio.insecure_channel(settings.otlp_endpoint) if settings.otlp_endpoint else None
        )
        self.sink = TraceSink(traces, TraceServiceStub(self.collector) if self.collector else None)
        rules = Rules(
            replica, settings.target, settings.claim, settings.default_ttl,
            settings.max_functions, _bounds(settings), idle_floor,
        )  # fmt: skip
        self.functions = FunctionService(
            store, self.catalog, lookup, builds, self.wakeups, traces, tracer, viewpoint, rules,
            self.reconciler.adopt, self.reconciler.look, self._routes_taken,
        )  # fmt: skip
        self.routes = RouteService(
            self.catalog,
            self.gateways,
            lookup,
            self.restored,
            self.activity.report,
            self.replicas.announce_gateway,
            driver,
        )
        reclamation = Reclamation(
            store, self.catalog, lookup, driver, builds, tracer, replica, idle_floor,
            self.take_rows, self._routes_taken,
        )  # fmt: skip
        self.reclaimer = ReclaimerService(
            store, self.catalog, driver, self.replicas.inventories, reclamation, self.restored
        )

    def take_rows(self, rows: Sequence[FunctionRow]) -> None:
        """Take rows that were written or read: routes and deadlines follow, watchers wake."""
        self.catalog.update(rows)
        self.wakeups.wake(row.uid for row in rows)

    @asynccontextmanager
    async def running(self, ready: Callable[[str], None] | None) -> AsyncGenerator[None]:
        """Serve, with all functions restored; at the end let go of everything in order."""
        server = Server(self.settings.deployer_listen, SERVICES, tracer_provider=self._provider)
        server.add(add_FunctionServiceServicer_to_server, self.functions)
        server.add(add_RouteServiceServicer_to_server, self.routes)
        server.add(add_ReclaimerServiceServicer_to_server, self.reclaimer)
        server.add(
            add_TraceServiceServicer_to_server,  # pyright: ignore[reportUnknownArgumentType]
            self.sink,
        )
        try:
            address = await server.start()
        except AddressInUse as error:
            raise StartError(str(error)) from error
        await self.driver.start()
        tasks = [
            asyncio.create_task(work, name=name)
            for name, work in (
                ("journal", self.journal.run()),
                ("notifications", self._follow()),
                ("house", keep_house(
                    self._store, self.activity, self.settings.tombstone_retention
                )),
            )
        ]  # fmt: skip
        try:
            await until_done(self.restoration.restore, "restore")
            self.gateways.expect(await self.replicas.recent_gateways())
            tasks.append(asyncio.create_task(self.replicas.follow(), name="replicas"))
            tasks.append(asyncio.create_task(self.reconciler.run(), name="reconciler"))
            for task in tasks:
                task.add_done_callback(_report_end)
            self.reconciler.look()
            self.restored.set()
            await server.health.set_all(True)
            watching = watch_store(self._store, server.health, NEED_STORE)
            tasks.append(asyncio.create_task(watching, name="readiness"))
            log.info("serving", address=address, functions=len(self.catalog.entries))
            if ready is not None:
                ready(address)
            yield
        finally:
            await server.health.set_all(False)
            self.wakeups.close()
            self.catalog.close()
            # While the sink still serves: it is what most spans go to.
            await asyncio.to_thread(self._provider.force_flush, _FLUSH_MILLISECONDS)
            await server.stop(_GRACE_SECONDS)
            await self._finish(tasks)

    async def _follow(self) -> None:
        if not self.driver.shared:
            await self._take_notifications()
            return
        await self.restored.wait()
        await self.role.run(self._lead)

    async def _lead(self) -> None:
        """What one replica at a time does for all."""
        # The one before may have died in the middle of a move to a new revision.
        await until_done(self.restoration.restore, "restore")
        async with asyncio.TaskGroup() as group:
            group.create_task(until_done(self._take_notifications, "follow"))
            group.create_task(self.lost_images.run())
            if self.scaler is not None:
                group.create_task(self.scaler.run())

    async def _take_notifications(self) -> None:
        await follow(self.driver, self.instances, self.restoration.wanted, self._restore_again)

    async def _routes_taken(self) -> str:
        return await self.replicas.routes_taken()

    async def _restore_again(self) -> None:
        self._tools.losses += 1
        self._tools.reserved.clear()
        await until_done(self.restoration.restore, "restore")
        self.reconciler.look()

    async def _finish(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        for task in tasks:
            if task.get_name() != "journal":
                task.cancel()
        await asyncio.wait([task for task in tasks if task.get_name() != "journal"])
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                await self.journal.drained()
                await self.reconciler.release()
        except (TimeoutError, StoreUnavailable) as error:
            # What was not written is done again, once the claims have run out.
            log.warning("claims_not_released", error=str(error))
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await self.driver.close()
        await self.channel.close()
        if self.collector is not None:
            await self.collector.close()


def _serve_metrics(settings: Settings, deployer: Deployer) -> Callable[[], None]:
    registry = metrics.registry()
    register(registry, DeployerCollector(deployer.catalog, deployer.reconciler, deployer.gateways))
    listen = settings.deployer_metrics_listen
    return metrics.serve(listen, registry, setting="MAYFLY_DEPLOYER_METRICS_LISTEN")


def _report_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("task_broke", task=task.get_name(), exc_info=error)


def _defaults(settings: Settings) -> Defaults:
    return Defaults(
        ttl=settings.default_ttl,
        max_ttl=settings.max_ttl,
        timeout=settings.default_timeout,
        memory_bytes=settings.memory_bytes,
        processes=settings.processes,
        open_files=settings.open_files,
        cpu_seconds=settings.cpu_seconds,
        concurrency=settings.concurrency,
        max_instances=settings.default_max_instances,
        start_timeout=settings.start_timeout,
        idle_stop=settings.idle_stop,
    )


def _bounds(settings: Settings) -> Bounds:
    return Bounds(
        max_ttl=settings.max_ttl,
        max_timeout=settings.max_timeout,
        max_source_bytes=settings.max_source_bytes,
        max_env_bytes=settings.max_env_bytes,
        max_instances=settings.max_instances,
        max_memory_bytes=settings.max_memory_bytes,
        max_processes=settings.max_processes,
        max_open_files=settings.max_open_files,
    )
