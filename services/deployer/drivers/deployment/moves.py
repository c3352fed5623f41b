"""Where a function is reached, as notifications, while it serves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from services.deployer.drivers.base import (
    BecameActive,
    BecameIdle,
    Endpoint,
    EndpointMoved,
    Notification,
)
from services.deployer.drivers.cluster.names import revision_of
from services.deployer.drivers.deployment.pods import annotation, endpoint_of
from services.deployer.drivers.deployment.serving import Serving

WOKEN = "mayfly.dev/woken"
"""Annotation: when somebody waited for it last, in seconds since the epoch."""
_GATHER_SECONDS = 0.01
"""Pods that come and go together are one move of the endpoint."""


@dataclass(frozen=True)
class View:
    """A function as it was last told. endpoint: None while a rollout is under way."""

    endpoint: Endpoint | None = None
    replicas: int = 0
    woken: str = ""


def view_of(serving: Serving, uid: str) -> View:
    """Return how a function is now."""
    settled = serving.settled(uid)
    if settled is None:
        return View()
    replicas = settled["spec"].get("replicas", 1)
    # What sleeps is reached no more, however long its pods take to end.
    pods = serving.instances(uid, revision_of(settled)) if replicas else []
    return View(endpoint_of(pods), replicas, annotation(settled, WOKEN))


def moves(uid: str, before: View, now: View) -> Iterator[Notification]:
    """What changed; told again to whoever has woken it; nothing during a rollout."""
    if now.endpoint is None:
        return
    woken = now.woken != before.woken and bool(now.endpoint.address)
    if now.endpoint != before.endpoint or woken:
        yield EndpointMoved(uid, now.endpoint)
        if now.endpoint.address:
            yield BecameActive(uid)
    if not now.replicas and (before.replicas or before.endpoint is None):
        yield BecameIdle(uid)


class Moves:
    """Tells of functions that were named to it, a moment later and each once."""

    def __init__(self, serving: Serving, tell: Callable[[Notification], None]) -> None:
        self._serving = serving
        self._tell = tell
        self._told: dict[str, View] = {}
        self._due: dict[str, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def look(self, uid: str) -> None:
        """Something of a function may have changed."""
        self._due[uid] = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_GATHER_SECONDS, self._say)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _say(self) -> None:
        self._timer = None
        due, self._due = self._due, {}
        for uid in due:
            now = view_of(self._serving, uid)
            before = self._told.get(uid, View())
            if now.endpoint is not None:
                self._told[uid] = now
            elif not self._serving.deployments(uid):
                self._told.pop(uid, None)
            for notification in moves(uid, before, now):
                self._tell(notification)
