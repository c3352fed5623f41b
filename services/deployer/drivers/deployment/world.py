"""The pods and Deployments of functions as the cluster has them now, by function."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack

from libs.kube.cluster import Cluster
from libs.kube.informer import Change
from libs.kube.kinds import DEPLOYMENT, POD, Manifest
from services.deployer.drivers.base import Endpoint
from services.deployer.drivers.cluster.names import revision_of, uid_of
from services.deployer.drivers.cluster.pods import is_ready
from services.deployer.drivers.deployment.answers import until_answers
from services.deployer.drivers.deployment.pods import (
    annotation,
    endpoint_of,
    is_serving,
    question_of,
    running_container,
)

SETTLED = "mayfly.dev/settled"
"""Annotation of the Deployment whose instances serve, once nothing is routed to older ones."""
WOKEN = "mayfly.dev/woken"
"""Annotation: when somebody waited for it, in seconds since the epoch."""
_SYNC_SECONDS = 30.0
_ASK_SECONDS = 300.0


class World:
    """Follows the cluster while it is entered, and asks instances that start whether they answer.

    observers: are told the uid of each function of which something has changed.
    """

    def __init__(self, cluster: Cluster, namespace: str, selector: str) -> None:
        self.observers: set[Callable[[str], None]] = set()
        self._pods = cluster.watch(POD, namespace, selector)
        self._deployments = cluster.watch(DEPLOYMENT, namespace, selector)
        self._by_uid: dict[str, dict[str, Manifest]] = {}
        self._deployments_by_uid: dict[str, dict[int, Manifest]] = {}
        self._answered: dict[str, str] = {}
        self._asking: dict[str, tuple[str, asyncio.Task[None]]] = {}
        self._stack = AsyncExitStack()

    async def open(self) -> None:
        """Return when all that there is is known. Raises KubeError."""
        self._stack.callback(self._pods.observe(self._take_pod))
        self._stack.callback(self._deployments.observe(self._take_deployment))
        for informer in (self._pods, self._deployments):
            await self._stack.enter_async_context(informer)
        for informer in (self._pods, self._deployments):
            await informer.ready(_SYNC_SECONDS)

    async def close(self) -> None:
        await self._stack.aclose()
        for _, task in self._asking.values():
            task.cancel()

    def uids(self) -> set[str]:
        """All functions of which there is something."""
        return set(self._by_uid) | set(self._deployments_by_uid)

    def deployments(self, uid: str) -> dict[int, Manifest]:
        """The Deployments of a function by revision."""
        return self._deployments_by_uid.get(uid, {})

    def settled(self, uid: str) -> Manifest | None:
        """The one Deployment of a function, where it is settled; None while another one is made."""
        found = list(self.deployments(uid).values())
        if len(found) != 1:
            return None
        return found[0] if annotation(found[0], SETTLED) else None

    def pods(self, uid: str, revision: int | None = None) -> list[Manifest]:
        """The pods of a function, or of one revision."""
        return [
            pod
            for pod in self._by_uid.get(uid, {}).values()
            if revision is None or revision_of(pod) == revision
        ]

    def serving(self, uid: str, revision: int) -> list[Manifest]:
        """Those of them that answer."""
        return [pod for pod in self.pods(uid, revision) if is_serving(pod, self._answered)]

    def endpoint(self, uid: str, revision: int) -> Endpoint:
        """Where a revision is reached; empty: nowhere now."""
        return endpoint_of(self.serving(uid, revision))

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

    def _take_pod(self, change: Change) -> None:
        pod, name = change.object, change.name
        uid = uid_of(pod)
        if not uid:
            return
        if change.type == "deleted":
            pods = self._by_uid.get(uid, {})
            pods.pop(name, None)
            if not pods:
                self._by_uid.pop(uid, None)
            self._answered.pop(name, None)
        else:
            self._by_uid.setdefault(uid, {})[name] = pod
        self._ask(uid, name, pod if change.type != "deleted" else None)
        self._tell((uid,))

    def _take_deployment(self, change: Change) -> None:
        uid, revision = uid_of(change.object), revision_of(change.object)
        if not uid:
            return
        if change.type == "deleted":
            known = self._deployments_by_uid.get(uid, {})
            known.pop(revision, None)
            if not known:
                self._deployments_by_uid.pop(uid, None)
        else:
            self._deployments_by_uid.setdefault(uid, {})[revision] = change.object
        self._tell((uid,))

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
                self._tell((uid,))

        self._asking[name] = (container, asyncio.create_task(ask(), name=f"ask-{name}"))

    def _tell(self, uids: Iterable[str]) -> None:
        for uid in uids:
            for observer in tuple(self.observers):
                observer(uid)
