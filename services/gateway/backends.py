"""Whether the services behind the gateway serve, learned from their `grpc.health.v1` streams."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import structlog
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from libs.rpc.cancellation import raise_if_cancelled

log = structlog.get_logger()

RETRY_SECONDS = 0.5


class Backends:
    """Watches the health of each backend: {service's full name: channel}."""

    def __init__(
        self,
        channels: dict[str, grpc.aio.Channel],
        changed: Callable[[str, bool], Awaitable[None]],
    ) -> None:
        self._channels = channels
        self._changed = changed
        self._serving = dict.fromkeys(channels, False)

    def serving(self) -> dict[str, bool]:
        """Return which services serve now, by full name."""
        return dict(self._serving)

    async def run(self) -> None:
        """Watch all; ends only when it is cancelled."""
        async with asyncio.TaskGroup() as group:
            for name, channel in self._channels.items():
                group.create_task(self._watch(name, channel))

    async def _watch(self, name: str, channel: grpc.aio.Channel) -> None:
        stub: Any = HealthStub(channel)
        while True:
            try:
                async for answer in stub.Watch(HealthCheckRequest(service=name)):
                    await self._set(name, answer.status == HealthCheckResponse.SERVING)
            except grpc.aio.AioRpcError as error:
                raise_if_cancelled()
                log.debug("backend_away", service=name, code=error.code().name)
            await self._set(name, False)
            await asyncio.sleep(RETRY_SECONDS)

    async def _set(self, name: str, up: bool) -> None:
        if self._serving[name] != up:
            self._serving[name] = up
            log.info("backend_changed", service=name, serving=up)
            await self._changed(name, up)
