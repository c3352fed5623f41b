"""What changes of functions while they serve, as notifications; for one replica at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

from libs.kube.kinds import Manifest
from services.deployer.drivers.base import (
    BecameActive,
    BecameIdle,
    Endpoint,
    EndpointMoved,
    InstanceStarted,
    InstanceStopped,
    Notification,
)
from services.deployer.drivers.cluster.container import CONTAINER
from services.deployer.drivers.cluster.names import revision_of
from services.deployer.drivers.cluster.pods import last_end
from services.deployer.drivers.deployment.pods import age_of, annotation, endpoint_of
from services.deployer.drivers.deployment.world import WOKEN, World

_GATHER_SECONDS = 0.01
"""Pods that come and go together are one move of the endpoint."""


@dataclass(frozen=True)
class View:
    """A function as it was last told. endpoint: None while a rollout is under way."""

    endpoint: Endpoint | None = None
    replicas: int = 0
    woken: str = ""
    instances: dict[str, Manifest] = field(default_factory=dict[str, Manifest])
    """Its pods that serve, by name."""


class Follower:
    """Tells everything that is the case once, and then what changes."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._told: dict[str, View] = {}

    async def notifications(self) -> AsyncGenerator[Notification]:
        pending = dict.fromkeys(self._world.uids())
        some = asyncio.Event()
        some.set()

        def observe(uid: str) -> None:
            pending[uid] = None
            some.set()

        self._world.observers.add(observe)
        try:
            while True:
                await some.wait()
                await asyncio.sleep(_GATHER_SECONDS)
                some.clear()
                uids = list(pending)
                pending.clear()
                for uid in uids:
                    for notification in self._news(uid):
                        yield notification
        finally:
            self._world.observers.discard(observe)

    def _news(self, uid: str) -> Iterator[Notification]:
        before = self._told.get(uid, View())
        now = view_of(self._world, uid)
        if now == View():
            self._told.pop(uid, None)
        else:
            self._told[uid] = now
        yield from instances_changed(uid, before, now, datetime.now(UTC))
        yield from endpoint_changed(uid, before, now)


def view_of(world: World, uid: str) -> View:
    """Return how a function is now."""
    deployments = world.deployments(uid)
    serving = [pod for revision in deployments for pod in world.serving(uid, revision)]
    instances = {pod["metadata"]["name"]: pod for pod in serving}
    settled = world.settled(uid)
    if settled is None:
        return View(instances=instances)
    revision = revision_of(settled)
    return View(
        endpoint_of(pod for pod in serving if revision_of(pod) == revision),
        settled["spec"].get("replicas", 1),
        annotation(settled, WOKEN),
        instances,
    )


def instances_changed(
    uid: str, before: View, now: View, time: datetime
) -> Iterator[InstanceStarted | InstanceStopped]:
    """Instances that came and went."""
    for name, pod in now.instances.items():
        if name not in before.instances:
            yield InstanceStarted(uid, name, revision_of(pod), age_of(pod, time))
    for name, pod in before.instances.items():
        if name not in now.instances:
            yield _stopped(uid, name, pod, now)


def _stopped(uid: str, name: str, pod: Manifest, now: View) -> InstanceStopped:
    if now.endpoint is not None and now.replicas == 0:
        return InstanceStopped(uid, name, "idle", None)
    end = last_end(pod, CONTAINER)
    if not end:
        return InstanceStopped(uid, name, "removed", None)
    code = int(end.get("exitCode", 0))
    reason = "memory" if end.get("reason") == "OOMKilled" else "exited"
    return InstanceStopped(uid, name, reason, 128 - code if 128 < code < 193 else code)


def endpoint_changed(uid: str, before: View, now: View) -> Iterator[Notification]:
    """Where it is reached, told again to whoever has woken it; nothing during a rollout."""
    if now.endpoint is None:
        return
    woken = now.woken != before.woken and bool(now.endpoint.address)
    if now.endpoint == before.endpoint and now.replicas == before.replicas and not woken:
        return
    if now.endpoint != before.endpoint or woken:
        yield EndpointMoved(uid, now.endpoint)
    if now.endpoint.address and now.replicas:
        yield BecameActive(uid)
    elif not now.replicas:
        yield BecameIdle(uid)
