"""Whether requests are to be sent to this replica, and its `grpc.health.v1` for who decides that.

Liveness depends on nothing but this process. Readiness depends on other services once: until the
deployer's routes have been here. When the deployer is away later, functions go on.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio

from libs.rpc.process import StartError

LIVENESS = "liveness"
READINESS = "readiness"


class Readiness:
    """Ready is: Envoy runs and has had the deployer's routes, and no stop has begun."""

    def __init__(self) -> None:
        self._routed = False
        self._envoy = False
        self._stopping = False
        self.changed = asyncio.Event()

    @property
    def ready(self) -> bool:
        """Whether requests are to be sent here now."""
        return self._routed and self._envoy and not self._stopping

    def routed(self) -> None:
        """Note that Envoy has what the deployer said."""
        self._routed = True
        self.changed.set()

    def envoy(self, up: bool) -> None:
        """Note whether Envoy is connected."""
        self._envoy = up
        self.changed.set()

    def stopping(self) -> None:
        """Note that the replica is told to stop."""
        self._stopping = True
        self.changed.set()


class HealthServer:
    """Serves readiness as "" and "readiness", and "liveness", at a host and port."""

    def __init__(self, readiness: Readiness) -> None:
        self._readiness = readiness
        self._servicer = health_aio.HealthServicer()
        self._server: Any = None

    async def start(self, address: str) -> None:
        """Listen. Raises `StartError` that names the setting."""
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, self._server)
        try:
            self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise StartError(
                f"MAYFLY_GATEWAY_HEALTH_LISTEN: cannot listen on {address}; "
                "stop what uses it, or choose another host:port"
            ) from error
        await self._servicer.set(LIVENESS, health_pb2.HealthCheckResponse.SERVING)
        await self.publish()
        await self._server.start()

    async def publish(self) -> None:
        """Answer by what holds now from here on."""
        statuses = health_pb2.HealthCheckResponse
        status = statuses.SERVING if self._readiness.ready else statuses.NOT_SERVING
        for service in ("", READINESS):
            await self._servicer.set(service, status)

    async def run(self) -> None:
        """Follow the readiness; ends only when it is cancelled."""
        while True:
            await self._readiness.changed.wait()
            self._readiness.changed.clear()
            await self.publish()

    async def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            await self._server.stop(0)
