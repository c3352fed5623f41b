"""One builder replica, put together and run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack

import structlog
from mayfly.v1 import build_pb2_grpc, reclaimer_pb2_grpc

from libs.rpc.process import StartError
from libs.rpc.server import AddressInUse, Health, Server
from libs.store import StoreUnavailable
from libs.store.start import Schema, start_store
from libs.telemetry import metrics as prometheus
from libs.telemetry import setup
from services.builder.backends.environment.backend import PLATFORM
from services.builder.builds import MIGRATIONS, QUERIES, SCHEMA, Builds
from services.builder.changes import Changes
from services.builder.choice import Choice
from services.builder.config import Settings
from services.builder.directories import Directories
from services.builder.ledger import Ledger
from services.builder.metrics import Metrics
from services.builder.opening import open_backends
from services.builder.parts import parts
from services.builder.reclaimer import NAME as RECLAIMER
from services.builder.reclaimer import ReclaimerService
from services.builder.removal import Removal
from services.builder.service import NAME as BUILDS
from services.builder.service import BuildService
from services.builder.worker import Worker

log = structlog.get_logger()

STOP_SECONDS = 5.0
HEALTH_SECONDS = 1.0
CLEAN_SECONDS = 600.0


async def serve(
    settings: Settings, stop: asyncio.Event, ready: Callable[[str], None] | None = None
) -> None:
    """Run one replica until `stop` is set; call `ready` with its address once it answers.

    Raises `StartError` when the database, the data directory or the address cannot be had.
    """
    async with AsyncExitStack() as stack:
        collectors = [c for c in (settings.deployer_address, settings.otlp_endpoint) if c]
        telemetry = setup("builder", collectors, log_level=settings.log_level)
        stack.push_async_callback(asyncio.to_thread, telemetry.shutdown)
        schema = Schema(SCHEMA, QUERIES, MIGRATIONS)
        store = await start_store(settings.database_url, schema, settings.database_wait)
        stack.push_async_callback(store.close)
        directories = _prepare(settings)
        metrics = Metrics(prometheus.registry())
        listen = settings.builder_metrics_listen
        setting = "MAYFLY_BUILDER_METRICS_LISTEN"
        stack.callback(prometheus.serve(listen, metrics.registry, setting=setting))
        choice = await open_backends(settings, parts(settings, directories, store), stack)
        builds = Builds(store, settings)
        changes = Changes(store)
        worker = Worker(builds, choice, directories, changes, settings, telemetry.tracer, metrics)
        removal = Removal(builds, choice, worker, changes)
        ledger = Ledger(store, settings.build_retention)

        server = Server(settings.builder_listen, [BUILDS, RECLAIMER], telemetry.provider)
        server.add(
            build_pb2_grpc.add_BuildServiceServicer_to_server,
            BuildService(builds, worker, choice, removal, changes, settings, PLATFORM),
        )
        server.add(
            reclaimer_pb2_grpc.add_ReclaimerServiceServicer_to_server,
            ReclaimerService(ledger, removal, choice, changes),
        )
        try:
            address = await server.start()
        except AddressInUse as error:
            raise StartError(f"MAYFLY_BUILDER_LISTEN: {error}") from error
        stack.push_async_callback(server.stop, STOP_SECONDS)
        # Before the server: open calls learn of it, and children are gone when this returns.
        stack.push_async_callback(worker.stop)

        async with asyncio.TaskGroup() as tasks:
            loops = [
                tasks.create_task(worker.run()),
                tasks.create_task(worker.keep_claims()),
                tasks.create_task(changes.listen()),
                tasks.create_task(_tell_health(server.health, builds, metrics)),
                tasks.create_task(_clean(builds, settings)),
                # Interpreters are looked at before anybody asks for one.
                tasks.create_task(_look_around(choice)),
            ]
            await server.health.set_all(True)
            log.info("builder_serves", address=address)
            if ready is not None:
                ready(address)
            await stop.wait()
            for loop in loops:
                loop.cancel()


def _prepare(settings: Settings) -> Directories:
    directories = Directories(settings.data_dir / "builds")
    try:
        directories.prepare()
    except OSError as error:
        raise StartError(
            f"MAYFLY_DATA_DIR: cannot use {error.filename}: {error.strerror}"
        ) from error
    return directories


async def _tell_health(health: Health, builds: Builds, metrics: Metrics) -> None:
    """Serve only while the database answers."""
    while True:
        try:
            counts = await builds.counts()
        except StoreUnavailable:
            await health.set_all(False)
        else:
            for kind in ("queued", "running", "environments"):
                metrics.rows.labels(kind).set(counts[kind])
            await health.set_all(True)
        await asyncio.sleep(HEALTH_SECONDS)


async def _clean(builds: Builds, settings: Settings) -> None:
    """Forget resolutions that are too old to be used."""
    while True:
        try:
            await builds.drop_old_resolutions(settings.resolution_age)
        except StoreUnavailable:
            log.warning("resolutions_not_cleaned")
        await asyncio.sleep(CLEAN_SECONDS)


async def _look_around(choice: Choice) -> None:
    await choice.runtimes()
