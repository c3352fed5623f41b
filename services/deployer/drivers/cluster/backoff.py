"""Functions whose containers ended again and again are not left to the kubelet's long waits."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import structlog

from libs.kube.errors import KubeError
from libs.kube.kinds import POD, Manifest
from services.deployer.drivers.cluster import container, names, pods
from services.deployer.drivers.cluster.world import World

log = structlog.get_logger()

_LEAST_SECONDS, _MOST_SECONDS = 10.0, 300.0
_FORGIVEN_SECONDS = 600.0
_GRACE = 1


def is_backing_off(pod: Manifest) -> bool:
    """Whether the kubelet waits before it starts the function's container again."""
    state: dict[str, Any] = pods.container_status(pod, container.CONTAINER).get("state") or {}
    waiting: dict[str, Any] = state.get("waiting") or {}
    return waiting.get("reason") == "CrashLoopBackOff" and not pods.is_ending(pod)


@dataclass(frozen=True)
class Patience:
    """When a function's pod was replaced last, and how long the next has to wait; in seconds."""

    at: float
    pause: float = _LEAST_SECONDS

    def next(self, now: float) -> Patience | None:
        """What it is after a replacement now; None: it is too early for one."""
        if now - self.at < self.pause:
            return None
        if now - self.at > _FORGIVEN_SECONDS:
            return Patience(now)
        return Patience(now, min(self.pause * 2, _MOST_SECONDS))


class Replacements:
    """Replaces such pods, so that the next request finds a fresh instance, and an empty /tmp.

    At most one of a function's in ten seconds, which doubles up to five minutes while it goes on;
    meanwhile the kubelet's waits are what bounds a container that ends as soon as it is started.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._last: dict[str, Patience] = {}
        self._queue: asyncio.Queue[Manifest] = asyncio.Queue()

    def take(self, pod: Manifest) -> None:
        """A pod as it is now."""
        if not is_backing_off(pod):
            return
        uid, now = names.uid_of(pod), asyncio.get_running_loop().time()
        last = self._last.get(uid)
        patience = Patience(now) if last is None else last.next(now)
        if patience is not None:
            self._last[uid] = patience
            self._queue.put_nowait(pod)

    def forget(self, uid: str) -> None:
        """The function has no pods any more."""
        self._last.pop(uid, None)

    async def run(self) -> None:
        """Without end."""
        while True:
            pod = await self._queue.get()
            metadata = pod["metadata"]
            try:
                await self._world.cluster.delete(
                    POD,
                    self._world.settings.namespace,
                    metadata["name"],
                    uid=metadata["uid"],
                    grace_seconds=_GRACE,
                )
            except KubeError as error:
                log.warning("pod_not_replaced", pod=metadata["name"], error=str(error))
            else:
                log.info("pod_replaced", pod=metadata["name"], why="its container ends repeatedly")
