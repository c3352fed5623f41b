"""The gateway put together: Envoy, and the control process around it."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from importlib import metadata, resources
from pathlib import Path

import grpc
import structlog
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from mayfly.v1 import build_pb2, function_pb2, janitor_pb2

from libs.rpc.addresses import Address, parse
from libs.rpc.channel import connect_streams
from libs.rpc.server import Server
from libs.telemetry import metrics, setup
from services.gateway import admin, pages
from services.gateway.ads import DiscoveryService
from services.gateway.backends import Backends
from services.gateway.bootstrap import bootstrap
from services.gateway.config import Settings
from services.gateway.contracts import methods, transcodable
from services.gateway.endpoints import Names
from services.gateway.envoy_config import (
    BUILD_SERVICE,
    FUNCTION_SERVICE,
    JANITOR_SERVICE,
    PUBLIC_SERVICES,
    Inputs,
)
from services.gateway.figures import register
from services.gateway.health import HealthServer, Readiness
from services.gateway.hold import Hold
from services.gateway.live_routes import LiveRoutes
from services.gateway.lrs import LoadReportingService
from services.gateway.openapi import document
from services.gateway.protos import add_discovery, add_load_reporting
from services.gateway.snapshot import ClusterCache, Epoch
from services.gateway.supervisor import Envoy, claim_port, find_envoy
from services.gateway.sync import Sync
from services.gateway.tls import secret
from services.gateway.transcode import response_bodies, script
from services.gateway.wire import Http1, Http2

log = structlog.get_logger()

# Reflection answers from the descriptors of modules that are imported.
REFLECTED = (build_pb2, function_pb2, janitor_pb2)
STOP_GRACE = 1.0
# A deployer that ends takes a question along; another one, or the next, answers it.
ASKED_AGAIN = ("mayfly.v1.RouteService/ActivateFunction",)


async def serve(
    settings: Settings, stop: asyncio.Event, ready: Callable[[str], None] | None = None
) -> None:
    """Run until `stop` is set; call `ready` with the public URL once Envoy takes requests.

    Raises `StartError` where the port is taken, or Envoy is missing or does not start.
    """
    listen = claim_port(parse(settings.listen))
    binary = find_envoy(settings.envoy)
    settings.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    settings.directory.chmod(0o700)
    contracts = FileDescriptorSet.FromString(
        resources.files("mayfly.v1").joinpath("descriptors.pb").read_bytes()
    )
    (settings.directory / "descriptors.pb").write_bytes(transcodable(contracts).SerializeToString())
    tls_secret = _write_secret(settings)
    scheme = "https" if tls_secret else "http"
    public_url = settings.public_url or f"{scheme}://localhost:{listen.port}"
    async with AsyncExitStack() as stack:
        endpoints = [settings.deployer_address, settings.otlp_endpoint]
        telemetry = setup(
            "gateway",
            [endpoint for endpoint in endpoints if endpoint],
            log_level=settings.log_level,
        )
        stack.push_async_callback(asyncio.to_thread, telemetry.shutdown)
        registry = metrics.registry()
        stack.callback(
            metrics.serve(
                settings.gateway_metrics_listen, registry, setting="MAYFLY_GATEWAY_METRICS_LISTEN"
            )
        )

        readiness = Readiness()
        health = HealthServer(readiness)
        if settings.gateway_health_listen:
            stack.push_async_callback(health.stop)
            await health.start(settings.gateway_health_listen)

        cache = ClusterCache()
        names = Names()
        routes = LiveRoutes(
            cache,
            names,
            settings.upstream_idle_timeout.total_seconds(),
            settings.socket("hold"),
            settings.socket("hold2"),
        )
        admin_address = settings.socket("admin")

        async def inventory() -> list[str]:
            try:
                return await admin.function_clusters(admin_address)
            except admin.AdminError as error:
                log.warning("inventory_without_envoy", detail=str(error))
                return []

        deployer = await stack.enter_async_context(
            connect_streams(settings.deployer_address, ASKED_AGAIN)
        )
        builder = await stack.enter_async_context(
            connect_streams(settings.builder_address, ASKED_AGAIN)
        )
        janitor = await stack.enter_async_context(
            connect_streams(settings.janitor_address, ASKED_AGAIN)
        )
        sync = Sync(deployer, settings.gateway_name, routes, inventory)

        def acked(epoch: Epoch) -> None:
            sync.acked(epoch)
            if routes.synced.is_set():
                readiness.routed()

        discovery = DiscoveryService(cache, acked, readiness.envoy)
        await stack.enter_async_context(
            _control(settings, discovery, LoadReportingService(routes.activity.envoy_reported))
        )
        hold = Hold(
            routes,
            sync.activate,
            telemetry.tracer,
            settings.domains,
            settings.hold_timeout.total_seconds(),
        )
        stack.push_async_callback(hold.stop)
        await hold.start(settings.socket("hold"), Http1())
        await hold.start(settings.socket("hold2"), Http2())

        channels = {FUNCTION_SERVICE: deployer, BUILD_SERVICE: builder, JANITOR_SERVICE: janitor}
        public = Server(str(settings.socket("public")), list(channels))
        stack.push_async_callback(public.stop, STOP_GRACE)
        await public.start()
        backends = Backends(channels, public.health.set)

        openapi = document(contracts, list(channels), public_url, metadata.version("mayfly"))
        served = pages.Pages(
            {
                "/": pages.index(public_url, metadata.version("mayfly")),
                "/openapi.json": pages.openapi(openapi),
                "/healthz": pages.healthz(
                    lambda: {"gateway": readiness.ready, **_parts(backends.serving())}
                ),
            }
        )
        stack.push_async_callback(served.stop)
        await served.start(settings.socket("pages"))

        config = bootstrap(_inputs(settings, listen, contracts, tls_secret))
        envoy = Envoy(binary, settings.directory, config, settings.envoy_concurrency)
        stack.push_async_callback(envoy.stop)
        await envoy.start(lambda: discovery.connected.is_set() and accepts(listen))

        register(
            registry,
            {
                "routes": ("Functions that are known here.", lambda: len(routes.ids())),
                "clusters": ("Functions that Envoy reaches by itself.", lambda: len(cache.names())),
                "held_requests": ("Requests that pass the control process now.", hold.open),
                "envoy_starts": ("How often Envoy was started.", lambda: envoy.starts),
                "ready": ("Whether requests are to be sent here.", lambda: readiness.ready),
                "synced": ("Whether the deployer is connected.", routes.synced.is_set),
            },
        )
        async with asyncio.TaskGroup() as group:
            backends_watched = group.create_task(backends.run())
            loops = (sync.run(), names.run(), health.run())
            running = [group.create_task(loop) for loop in loops]
            log.info("gateway_ready", url=public_url, listen=str(listen))
            if ready is not None:
                ready(public_url)
            await stop.wait()
            readiness.stopping()
            await health.publish()
            backends_watched.cancel()  # has no say any more
            await public.health.set_all(False)
            await _drain(
                admin_address,
                settings.shutdown_delay.total_seconds(),
                settings.drain_timeout.total_seconds(),
            )
            for task in running:
                task.cancel()


async def _drain(envoy: Address, delay: float, seconds: float) -> None:
    """Let load balancers notice for `delay` seconds; then let requests end, within `seconds`."""
    try:
        if delay:
            await admin.discourage(envoy)
            await asyncio.sleep(delay)
        left = await admin.drain(envoy, seconds)
    except admin.AdminError as error:
        log.warning("gateway_not_drained", detail=str(error))  # an Envoy that died has no requests
    else:
        log.info("gateway_drained", cut=left)


def _parts(serving: dict[str, bool]) -> dict[str, bool]:
    """Return who serves by the name that the service itself goes by."""
    return {PUBLIC_SERVICES[service].removeprefix("_"): up for service, up in serving.items()}


def accepts(address: Address) -> bool:
    """Whether something listens at a host and port now."""
    host = "127.0.0.1" if address.host == "0.0.0.0" else address.host
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.settimeout(0.2)
        return probe.connect_ex((host, address.port)) == 0


def _write_secret(settings: Settings) -> str:
    """Write the file that Envoy finds the certificate by; empty where there is no certificate."""
    if not settings.tls_certificate:
        return ""
    path = settings.directory / "tls.json"
    made = secret(Path(settings.tls_certificate).absolute(), Path(settings.tls_key).absolute())
    path.write_text(json.dumps(made))
    return str(path)


def _inputs(
    settings: Settings, listen: Address, contracts: FileDescriptorSet, tls_secret: str
) -> Inputs:
    public_methods = list(methods(contracts, PUBLIC_SERVICES))
    return Inputs(
        node=settings.gateway_name,
        listen=listen,
        admin=settings.socket("admin"),
        api=settings.socket("api"),
        control=settings.socket("control"),
        hold=settings.socket("hold"),
        hold_http2=settings.socket("hold2"),
        pages=settings.socket("pages"),
        public=settings.socket("public"),
        deployer=parse(settings.deployer_address),
        builder=parse(settings.builder_address),
        janitor=parse(settings.janitor_address),
        descriptors=str(settings.directory / "descriptors.pb"),
        api_script=script(contracts, public_methods),
        method_metadata=response_bodies(public_methods),
        domains=settings.domains,
        allowed_origins=settings.allowed_origins,
        api_body_bytes=settings.api_body_bytes,
        tls_secret=tls_secret,
        trusted_proxies=settings.trusted_proxies,
    )


@asynccontextmanager
async def _control(
    settings: Settings, discovery: DiscoveryService, load_reports: LoadReportingService
) -> AsyncGenerator[None]:
    """Serve xDS and load reports to Envoy."""
    address = settings.socket("control")
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    add_discovery(discovery, server)
    add_load_reporting(load_reports, server)
    (settings.directory / "control.sock").unlink(missing_ok=True)
    server.add_insecure_port(str(address))
    await server.start()
    try:
        yield
    finally:
        await server.stop(0)
