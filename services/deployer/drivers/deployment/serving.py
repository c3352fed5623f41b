"""Which instances of functions answer, and which revision it is that serves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from libs.kube.informer import Change
from libs.kube.kinds import DEPLOYMENT, POD, Kind, Manifest
from services.deployer.drivers.cluster.names import revision_of, uid_of
from services.deployer.drivers.cluster.pods import is_ready
from services.deployer.drivers.cluster.world import World
from services.deployer.drivers.deployment.answers import until_answers
from services.deployer.drivers.deployment.pods import (
    annotation,
    is_serving,
    question_of,
    running_container,
)

SETTLED = "mayfly.dev/settled"
"""Annotation of the Deployment whose instances serve, once nothing is routed to older ones."""
_ASK_SECONDS = 300.0


class Serving:
    """Follows a world, and asks instances that start whether they answer.

    observers: are told the uid of each function of which something has changed.
    """

    def __init__(self, world: World) -> None:
        self.observers: set[Callable[[str], None]] = set()
        self._world = world
        self._answered: dict[str, str] = {}
        self._asking: dict[str, tuple[str, asyncio.Task[None]]] = {}
        world.observe(self._take)

    def close(self) -> None:
        """Ask no more."""
        for _, task in self._asking.values():
            task.cancel()
        self._asking.clear()

    def deployments(self, uid: str) -> dict[int, Manifest]:
        """The Deployments of a function by revision."""
        return {revision_of(each): each for each in self._world.all_of(DEPLOYMENT, uid)}

    def settled(self, uid: str) -> Manifest | None:
        """The one Deployment of a function, where it is settled; None while another one is made."""
        found = self._world.all_of(DEPLOYMENT, uid)
        return found[0] if len(found) == 1 and annotation(found[0], SETTLED) else None

    def instances(self, uid: str, revision: int) -> list[Manifest]:
        """The pods of a revision that answer."""
        return [pod for pod in self._world.pods(uid, revision) if is_serving(pod, self._answered)]

    async def news(self, uid: str, seconds: float) -> None:
        """Wait until something of `uid` changes, for `seconds` at most."""
        changed = asyncio.Event()

        def observe(told: str) -> None:
            if told == uid:
                changed.set()

        self.observers.add(observe)
        try:
            async with asyncio.timeout(seconds):
                await changed.wait()
        except TimeoutError:
            return
        finally:
            self.observers.discard(observe)

    def _take(self, kind: Kind, change: Change) -> None:
        uid = uid_of(change.object)
        if kind == POD:
            gone = change.type == "deleted"
            if gone or is_ready(change.object):
                self._answered.pop(change.name, None)
            self._ask(uid, change.name, None if gone else change.object)
        if kind in (POD, DEPLOYMENT):
            self._tell(uid)

    def _ask(self, uid: str, name: str, pod: Manifest | None) -> None:
        """Ask a container that runs and is not ready yet, each once."""
        container = "" if pod is None or is_ready(pod) else running_container(pod)
        asked, task = self._asking.get(name, ("", None))
        if asked == container:
            return
        if task is not None:
            task.cancel()
            del self._asking[name]
        question = question_of(pod) if pod is not None and container else None
        if question is None or self._answered.get(name) == container:
            return

        async def ask() -> None:
            if await until_answers(question, _ASK_SECONDS):
                self._answered[name] = container
                self._tell(uid)

        self._asking[name] = (container, asyncio.create_task(ask(), name=f"ask-{name}"))

    def _tell(self, uid: str) -> None:
        for observer in tuple(self.observers):
            observer(uid)
