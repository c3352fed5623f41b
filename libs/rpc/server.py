"""A gRPC server with health, reflection, error statuses and tracing, as every service runs it."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH_SERVICE
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection
from opentelemetry.instrumentation.grpc import (
    aio_server_interceptor,  # pyright: ignore[reportUnknownVariableType]
)
from opentelemetry.sdk.trace import TracerProvider

from libs.rpc.interceptor import ErrorInterceptor
from libs.rpc.tracing import is_traced

# Serves while the process lives, whatever its services need: what a liveness probe asks for.
LIVENESS = "liveness"

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),  # two services on one port is a mistake, not load balancing
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
)


class AddressInUse(Exception):
    """The address cannot be bound; the message names it."""


class Health:
    """What `grpc.health.v1` answers; a service is NOT_SERVING until it is said to serve.

    The overall status (the empty name) is SERVING when every service is. The name "liveness" is
    SERVING from the start to the end of the process: a probe that asks for it never restarts a
    service because its database is away.
    """

    def __init__(self, services: Sequence[str]) -> None:
        self.servicer = health_aio.HealthServicer()
        self._serving = dict.fromkeys(services, False)

    async def set(self, service: str, serving: bool) -> None:
        """Say whether `service` (its full name) serves now."""
        self._serving[service] = serving
        await self._publish()

    async def set_all(self, serving: bool) -> None:
        """Say it of all services."""
        self._serving = dict.fromkeys(self._serving, serving)
        await self._publish()

    async def live(self) -> None:
        """Say that the process lives."""
        await self.servicer.set(LIVENESS, _status(True))

    async def _publish(self) -> None:
        for name, serving in self._serving.items():
            await self.servicer.set(name, _status(serving))
        await self.servicer.set("", _status(all(self._serving.values())))


class Server:
    """A gRPC server at one address: "unix:/path" or "host:port" (port 0 picks one)."""

    def __init__(
        self,
        address: str,
        services: Sequence[str],
        tracer_provider: TracerProvider | None = None,
    ) -> None:
        self.address = address
        self.health = Health(services)
        self._server: grpc.aio.Server = grpc.aio.server(
            interceptors=(_tracing(tracer_provider), ErrorInterceptor()), options=_OPTIONS
        )
        health_pb2_grpc.add_HealthServicer_to_server(self.health.servicer, self._server)
        names = (*services, HEALTH_SERVICE, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)

    def add(self, adder: Callable[[Any, Any], None], servicer: object) -> None:
        """Register `servicer` by its generated `add_XServicer_to_server`."""
        adder(servicer, self._server)

    async def start(self) -> str:
        """Bind and serve; return the address with the port that was picked.

        Raises `AddressInUse` when it cannot be bound.
        """
        if self.address.startswith("unix:"):
            _remove_stale_socket(Path(self.address.removeprefix("unix:")))
        try:
            port = self._server.add_insecure_port(self.address)
        except RuntimeError as error:
            raise AddressInUse(f"cannot listen on {self.address}: {error}") from error
        if self.address.startswith("unix:"):
            os.chmod(self.address.removeprefix("unix:"), stat.S_IRUSR | stat.S_IWUSR)
        else:
            self.address = f"{self.address.rsplit(':', 1)[0]}:{port}"
        await self.health.live()
        await self._server.start()
        return self.address

    async def stop(self, grace: float) -> None:
        """Say NOT_SERVING, take no new calls, and give the open ones `grace` seconds."""
        await self.health.servicer.enter_graceful_shutdown()
        await self._server.stop(grace)


def _tracing(provider: TracerProvider | None) -> Any:
    return aio_server_interceptor(provider, is_traced)


def _status(serving: bool) -> Any:
    statuses: Any = health_pb2.HealthCheckResponse
    return statuses.SERVING if serving else statuses.NOT_SERVING


def _remove_stale_socket(path: Path) -> None:
    """Remove what a killed process left; gRPC refuses to bind over it."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if path.is_socket():
        path.unlink()
