"""Everything that happens to functions, as notifications, for the one replica that follows."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable

import structlog

from libs.kube.informer import Change
from libs.kube.kinds import POD, Kind, Manifest
from services.deployer.drivers.base import (
    ArtefactLost,
    DriverUnavailable,
    LogLine,
    Notification,
    Wanted,
)
from services.deployer.drivers.cluster import failures, names
from services.deployer.drivers.cluster.backoff import Replacements
from services.deployer.drivers.cluster.drift import Desired, Drift
from services.deployer.drivers.cluster.instances import Instances
from services.deployer.drivers.cluster.logs import LogStreams
from services.deployer.drivers.cluster.world import World

log = structlog.get_logger()

_MAX_NOTIFICATIONS = 50_000

OnPods = Callable[[str], Iterable[Notification]]
"""What a driver has to say when a function's pods have changed, or at the beginning."""


class Follower:
    """desired: a driver's builders. on_pods: what it says of a function beyond instances."""

    def __init__(self, world: World, wanted: Wanted, desired: Desired, on_pods: OnPods) -> None:
        self._world = world
        self._wanted = wanted
        self._on_pods = on_pods
        self._queue: deque[Notification] = deque()
        self._some = asyncio.Event()
        self._drift = Drift(world, wanted, desired, self.tell)
        self._logs = LogStreams(world, self.tell)
        self._instances = Instances(self.tell)
        self._replacements = Replacements(world)
        self._lost: set[tuple[str, int]] = set()
        self._suspects: asyncio.Queue[tuple[str, int, str]] = asyncio.Queue()

    def tell(self, notification: Notification) -> None:
        """Pass a notification on. Log lines make room for what is not told again."""
        if len(self._queue) >= _MAX_NOTIFICATIONS:
            if isinstance(notification, LogLine):
                return
            self._queue.popleft()
        self._queue.append(notification)
        self._some.set()

    async def notifications(self, known: Iterable[str]) -> AsyncGenerator[Notification]:
        """Without end: first what is the case, then what happens.

        known: functions that are to have objects, whether there are any or not.
        """
        await self._world.ready()
        end = self._world.observe(self._take)
        tasks = [
            asyncio.create_task(self._drift.run(), name="drift"),
            asyncio.create_task(self._judge(), name="lost-artefacts"),
            asyncio.create_task(self._replacements.run(), name="replacements"),
        ]
        try:
            uids = {*known, *(uid for kind in self._world.kinds for uid in self._world.uids(kind))}
            for uid in uids | set(self._world.uids(POD)):
                for kind in self._world.kinds:
                    for each in self._world.all_of(kind, uid):
                        self._drift.take(kind, Change("added", each))
                for pod in self._world.pods(uid):
                    self._instances.know(pod)
                    self._take_pod(pod)
                self._say(uid)
            self._drift.check(uids)
            while True:
                await self._some_or_broken(tasks)
                while self._queue:
                    yield self._queue.popleft()
        finally:
            end()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._logs.close()

    async def _some_or_broken(self, tasks: list[asyncio.Task[None]]) -> None:
        waiting = asyncio.create_task(self._some.wait())
        try:
            await asyncio.wait([waiting, *tasks], return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        self._some.clear()
        for task in tasks:
            if task.done():
                task.result()  # what broke it is raised; none of them ends by itself

    def _take(self, kind: Kind, change: Change) -> None:
        if kind != POD:
            self._drift.take(kind, change)
            return
        pod = change.object
        uid = names.uid_of(pod)
        if change.type == "deleted":
            self._instances.gone(pod)
            self._logs.forget(pod)
            if not self._world.all_of(self._world.kinds[0], uid):
                self._replacements.forget(uid)
        else:
            self._instances.take(pod)
            self._take_pod(pod)
        self._say(uid)

    def _take_pod(self, pod: Manifest) -> None:
        self._logs.take(pod)
        self._replacements.take(pod)
        if failures.is_image_gone(pod):
            name = pod["metadata"]["name"]
            self._suspects.put_nowait((names.uid_of(pod), names.revision_of(pod), name))

    def _say(self, uid: str) -> None:
        for notification in self._on_pods(uid):
            self.tell(notification)

    async def _judge(self) -> None:
        """An image that is gone matters where it is what serves; else the deploy says so."""
        while True:
            uid, revision, pod = await self._suspects.get()
            if (uid, revision) in self._lost:
                continue
            try:
                workload = await self._wanted(uid)
            except DriverUnavailable as error:
                log.warning("lost_artefact_not_judged", uid=uid, error=str(error))
                continue  # its pod says so again
            if workload is None or workload.revision != revision:
                continue
            self._lost.add((uid, revision))
            self.tell(ArtefactLost(uid, f"the image of {pod} is not in its registry any more"))
