"""One janitor replica, put together and run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack

import structlog
from mayfly.v1 import janitor_pb2_grpc

from libs.rpc.process import StartError
from libs.rpc.server import AddressInUse, Health, Server
from libs.store import StoreUnavailable
from libs.store.start import start_store
from libs.telemetry import metrics as prometheus
from libs.telemetry import setup
from services.janitor.config import Settings
from services.janitor.metrics import Metrics
from services.janitor.owners import Owner
from services.janitor.receipts import SCHEMA, Receipts
from services.janitor.reclaim import Reclaimer
from services.janitor.service import NAME, JanitorService
from services.janitor.spans import Spans
from services.janitor.sweep import Sweeper

log = structlog.get_logger()

STOP_SECONDS = 5.0
HEALTH_SECONDS = 1.0


async def serve(
    settings: Settings, stop: asyncio.Event, ready: Callable[[str], None] | None = None
) -> None:
    """Run one replica until `stop` is set; call `ready` with its address once it answers.

    Raises `StartError` when the database or the listening address cannot be had.
    """
    async with AsyncExitStack() as stack:
        collectors = [settings.deployer_address, *filter(None, [settings.otlp_endpoint])]
        telemetry = setup("janitor", collectors, log_level=settings.log_level)
        stack.push_async_callback(asyncio.to_thread, telemetry.shutdown)
        store = await start_store(settings.database_url, SCHEMA, settings.database_wait, max_size=4)
        stack.push_async_callback(store.close)
        receipts = Receipts(store)
        metrics = Metrics(prometheus.registry())
        spans = Spans(telemetry.tracer)
        stack.callback(spans.flush)
        owners = {
            name: Owner(
                name,
                address,
                reclaim_timeout=settings.reclaim_timeout.total_seconds(),
                verify_timeout=settings.verify_timeout.total_seconds(),
                tracer_provider=telemetry.provider,
            )
            for name, address in settings.all_owners().items()
        }
        for owner in owners.values():
            stack.push_async_callback(owner.close)
        reclaimer = Reclaimer(owners, receipts, settings, metrics, spans)
        sweeper = Sweeper(owners, receipts, metrics, settings.reclaim_batch)
        _add_gauges(metrics, reclaimer)
        listen = settings.janitor_metrics_listen
        setting = "MAYFLY_JANITOR_METRICS_LISTEN"
        stack.callback(prometheus.serve(listen, metrics.registry, setting=setting))

        server = Server(settings.janitor_listen, [NAME], telemetry.provider)
        service = JanitorService(owners, receipts, reclaimer, sweeper)
        server.add(janitor_pb2_grpc.add_JanitorServiceServicer_to_server, service)
        try:
            address = await server.start()
        except AddressInUse as error:
            raise StartError(f"MAYFLY_JANITOR_LISTEN: {error}") from error
        stack.push_async_callback(server.stop, STOP_SECONDS)

        async with asyncio.TaskGroup() as tasks:
            loops = [tasks.create_task(owner.watch(reclaimer)) for owner in owners.values()]
            loops.append(tasks.create_task(reclaimer.run()))
            loops.append(tasks.create_task(spans.run()))
            loops.append(tasks.create_task(_tell_health(server.health, receipts)))
            if settings.sweep_interval:
                sweeping = sweeper.run(settings.sweep_interval, settings.receipt_retention)
                loops.append(tasks.create_task(sweeping))
            await server.health.set(NAME, True)
            log.info("janitor_serves", address=address)
            if ready is not None:
                ready(address)
            await stop.wait()
            for loop in loops:
                loop.cancel()


def _add_gauges(metrics: Metrics, reclaimer: Reclaimer) -> None:
    metrics.gauge("mayfly_janitor_deadlines", "Deadlines known", lambda: reclaimer.deadlines)
    metrics.gauge(
        "mayfly_janitor_overdue",
        "Deadlines that have passed and are not reclaimed yet",
        lambda: reclaimer.overdue,
    )
    metrics.gauge(
        "mayfly_janitor_last_lag_seconds",
        "How late the latest reclamation was",
        lambda: reclaimer.lag / 1e9,
    )


async def _tell_health(health: Health, receipts: Receipts) -> None:
    """Serve only while the database answers: without it no receipt can be read or written."""
    while True:
        try:
            await receipts.ping()
        except StoreUnavailable:
            await health.set(NAME, False)
        else:
            await health.set(NAME, True)
        await asyncio.sleep(HEALTH_SECONDS)
