"""The objects of the functions' namespace: kept up to date, applied, waited for and removed."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Callable, Collection, Generator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager, suppress
from typing import TypeVar

import structlog

from libs.kube.cluster import Cluster
from libs.kube.errors import KubeError, NotFound
from libs.kube.informer import Change, Informer
from libs.kube.kinds import (
    DEPLOYMENT,
    KNATIVE_CONFIGURATION,
    KNATIVE_REVISION,
    KNATIVE_SERVICE,
    POD,
    REPLICA_SET,
    Kind,
    Manifest,
)
from services.deployer.drivers.base import DeployFailed, DriverUnavailable, Resource
from services.deployer.drivers.cluster import failures, names, pods
from services.deployer.drivers.cluster.failures import LOG_TAIL, Trouble
from services.deployer.drivers.cluster.settings import ClusterSettings

log = structlog.get_logger()

_READY_SECONDS = 20.0
_GONE_SECONDS = 45.0
_LOOK_SECONDS = 1.0
_LOG_SECONDS = 5.0
_POD_GRACE = 1
_LATE_SECONDS = 1.0
_LETS_GO = frozenset({DEPLOYMENT, REPLICA_SET})
"""Kinds that are deleted without what they made, which is deleted by itself."""
_TOP_DOWN = (KNATIVE_SERVICE, KNATIVE_CONFIGURATION, KNATIVE_REVISION, DEPLOYMENT, REPLICA_SET)
"""Kinds that make others or pods, and make again what is deleted before them."""
_AT_ONCE = 16
_BATCH = 50
_T = TypeVar("_T")

OnChange = Callable[[Kind, Change], None]


class World:
    """Pods, and the `kinds` of objects that a driver makes, of this installation.

    made: kinds that controllers make of these; they are looked at to be removed. While the API
    server is away everything here raises DriverUnavailable after a while, and goes on by itself
    afterwards.
    """

    def __init__(
        self, settings: ClusterSettings, kinds: Sequence[Kind], made: Sequence[Kind] = ()
    ) -> None:
        self.settings = settings
        self.kinds = tuple(kinds)
        self.made = tuple(made)
        self.all_kinds = (*kinds, *made, POD)
        self._cluster: Cluster | None = None
        self._stack = AsyncExitStack()
        self._informers: dict[Kind, Informer] = {}
        self._objects: dict[tuple[Kind, str], dict[str, Manifest]] = {}
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._observers: set[OnChange] = set()

    async def start(self) -> None:
        """Begin to look; that the API server does not answer yet is no error.

        Raises DriverUnavailable where nobody says how it is reached.
        """
        with translated():
            self._cluster = await Cluster.connect(self.settings.kubeconfig)
        self._stack.push_async_callback(self._cluster.close)
        chosen = names.selector(self.settings)
        for kind in self.all_kinds:
            informer = self._cluster.watch(kind, self.settings.namespace, chosen)
            informer.observe(lambda change, kind=kind: self._take(kind, change))
            self._informers[kind] = await self._stack.enter_async_context(informer)

    async def close(self) -> None:
        await self._stack.aclose()

    @property
    def cluster(self) -> Cluster:
        """Raises DriverUnavailable before `start`."""
        if self._cluster is None:
            raise DriverUnavailable("the driver has not been started")
        return self._cluster

    async def ready(self) -> None:
        """Wait until everything there is is known. Raises DriverUnavailable."""
        with translated():
            for informer in self._informers.values():
                await informer.ready(_READY_SECONDS)

    def observe(self, observer: OnChange) -> Callable[[], None]:
        """Call `observer` with each change from now on; returns what ends that."""
        self._observers.add(observer)
        return lambda: self._observers.discard(observer)

    def uids(self, kind: Kind) -> list[str]:
        """The functions that have objects of a kind."""
        return [uid for (of, uid), objects in self._objects.items() if of == kind and objects]

    def all_of(self, kind: Kind, uid: str) -> list[Manifest]:
        """A function's objects of a kind."""
        return list(self._objects.get((kind, uid), {}).values())

    def one(self, kind: Kind, name: str) -> Manifest | None:
        return self._informers[kind].objects.get(name)

    def pods(self, uid: str, revision: int | None = None) -> list[Manifest]:
        """A function's pods, those that are ending too."""
        return [
            pod
            for pod in self.all_of(POD, uid)
            if revision is None or names.revision_of(pod) == revision
        ]

    async def until(
        self, uid: str, predicate: Callable[[], _T | None], seconds: float
    ) -> _T | None:
        """Wait until `predicate`, asked at each change of the function's objects and each second,
        returns something. None: it did not in time. What it raises is raised.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        with self._changes(uid) as changed:
            while (found := predicate()) is None:
                left = deadline - loop.time()
                if left <= 0:
                    return None
                await _wait(changed, min(left, _LOOK_SECONDS))
        return found

    async def apply(self, manifests: Sequence[Manifest]) -> list[Manifest]:
        """Apply in order; return the objects as they are now. Raises KubeError."""
        return [await self.cluster.apply(manifest) for manifest in manifests]

    async def remove(self, uids: Collection[str]) -> dict[str, list[Resource]]:
        """Delete all that these functions have, and wait until it is gone.

        What is still there after three quarters of a minute is told as a resource of type "error",
        at once where all but its function are gone: a pod that was told to end before, with the
        grace of its own, is not hurried by its node. No pod is let go of before its node says that
        it has ended, since until then it runs.
        """
        removed: dict[str, list[Resource]] = {uid: [] for uid in uids}
        ordered = list(removed)
        slots = asyncio.Semaphore(_AT_ONCE)
        draining: set[str] = set()
        with translated():
            for start in range(0, len(ordered), _BATCH):
                chosen = names.uids_selector(self.settings, ordered[start : start + _BATCH])
                # First what would make other pods in their place, and it lets go of them: the
                # garbage collector tells a pod to end with the grace of its own.
                makers = [kind for kind in _TOP_DOWN if kind in self.all_kinds]
                rest = [kind for kind in self.kinds if kind not in _TOP_DOWN]
                await self._disown(chosen, slots)
                made = await self._delete_all(makers, chosen, slots)
                running, others = await asyncio.gather(
                    *(self._delete_all(kinds, chosen, slots) for kinds in ((POD,), rest))
                )
                for each in itertools.chain(made, running, others):
                    removed[names.uid_of(each)].append(resource_of(each))
                draining |= {names.uid_of(pod) for pod in running if pods.is_told_to_end(pod)}
            await self.ready()
            quick = [uid for uid in ordered if uid not in draining]
            limits = (quick, _GONE_SECONDS), (draining, 0.0 if quick else _GONE_SECONDS)
            for some, seconds in limits:
                await asyncio.gather(*(self._until_gone(uid, slots, seconds) for uid in some))
        for uid in ordered:
            if left := self._left(uid):
                detail = f"still there: {', '.join(left)}"
                removed[uid].append(Resource("error", uid, uid, detail))
        return removed

    async def _disown(self, chosen: str, slots: asyncio.Semaphore) -> None:
        """Have Deployments belong to nothing: the garbage collector, which comes as soon as their
        owner is gone, then leaves them and their pods alone."""

        async def disown(manifest: Manifest) -> None:
            async with slots:
                with suppress(NotFound):
                    await self.cluster.patch(
                        DEPLOYMENT,
                        self.settings.namespace,
                        manifest["metadata"]["name"],
                        {"metadata": {"ownerReferences": None}},
                    )

        if DEPLOYMENT not in self.made:
            return
        found = await self.cluster.list(DEPLOYMENT, self.settings.namespace, chosen)
        owned = [each for each in found if each["metadata"].get("ownerReferences")]
        await asyncio.gather(*map(disown, owned))

    async def _delete_all(
        self, kinds: Sequence[Kind], chosen: str, slots: asyncio.Semaphore
    ) -> list[Manifest]:
        # All are listed first: what one of them owns goes with it, and would not be seen.
        found = await asyncio.gather(
            *(self.cluster.list(kind, self.settings.namespace, chosen) for kind in kinds)
        )
        for kind, objects in zip(kinds, found, strict=True):
            grace = _POD_GRACE if kind == POD else None
            await asyncio.gather(
                *(
                    self._delete(kind, each, slots, grace, lets_go=_lets_go(kind, each))
                    for each in objects
                )
            )
        return list(itertools.chain.from_iterable(found))

    async def delete(self, manifests: Sequence[tuple[Kind, Manifest]]) -> None:
        """Delete some objects, without waiting. Raises KubeError."""
        slots = asyncio.Semaphore(_AT_ONCE)
        await asyncio.gather(*(self._delete(kind, each, slots) for kind, each in manifests))

    async def _delete(
        self,
        kind: Kind,
        manifest: Manifest,
        slots: asyncio.Semaphore,
        grace: int | None = None,
        *,
        lets_go: bool = False,
    ) -> None:
        metadata = manifest["metadata"]
        async with slots:
            await self.cluster.delete(
                kind,
                self.settings.namespace,
                metadata["name"],
                uid=metadata["uid"],
                grace_seconds=grace,
                propagation="Orphan" if lets_go else "Background",
            )

    async def _until_gone(self, uid: str, slots: asyncio.Semaphore, seconds: float) -> None:
        """What made pods is deleted, but may have made more; they are ended one by one."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        asked: set[str] = set()
        with self._changes(uid) as changed:
            while self._left(uid) and (waited := loop.time() - began) <= seconds:
                fresh = {pod["metadata"]["uid"]: pod for pod in self.pods(uid)}
                await asyncio.gather(
                    *(
                        self._delete(POD, pod, slots, _POD_GRACE)
                        for own, pod in fresh.items()
                        if own not in asked
                    )
                )
                asked |= set(fresh)
                if waited > _LATE_SECONDS:
                    await self._delete_late(uid, slots)
                await _wait(changed, _LOOK_SECONDS)

    async def _delete_late(self, uid: str, slots: asyncio.Semaphore) -> None:
        """What was made while what makes it was being deleted belongs to nothing any more."""
        await asyncio.gather(
            *(
                self._delete(kind, each, slots, lets_go=_lets_go(kind, each))
                for kind in _TOP_DOWN
                for each in self.all_of(kind, uid)
                if "deletionTimestamp" not in each["metadata"]
            )
        )

    def _left(self, uid: str) -> list[str]:
        return [
            f"{kind.name} {each['metadata']['name']}"
            for kind in self.all_kinds
            for each in self.all_of(kind, uid)
        ]

    async def failed(self, pod: Manifest | None, trouble: Trouble) -> DeployFailed:
        """A trouble with what the container wrote last."""
        lines: list[str] = []
        if pod is not None and trouble.logs:
            lines = await self._last_lines(pod, trouble)
        return failures.failed(trouble, lines)

    async def _last_lines(self, pod: Manifest, trouble: Trouble) -> list[str]:
        """Of the process that ended. It may be replaced while it is asked for, so that what was
        its present log is then the one before; a new one has written nothing yet."""
        for previous in (True, False, True):
            lines = await self._lines(pod, trouble.container, previous)
            if lines:
                return lines
        return []

    async def _lines(self, pod: Manifest, name: str, previous: bool) -> list[str]:
        # One line more: what the container says of itself is not shown.
        reading = self.cluster.logs(
            self.settings.namespace,
            pod["metadata"]["name"],
            name,
            tail=LOG_TAIL + 1,
            previous=previous,
        )
        try:
            async with asyncio.timeout(_LOG_SECONDS), aclosing(reading) as lines:
                return [line async for line in lines]
        except (KubeError, TimeoutError) as error:
            log.debug("no_last_lines", pod=pod["metadata"]["name"], error=str(error))
            return []

    @contextmanager
    def _changes(self, uid: str) -> Generator[asyncio.Event]:
        event = asyncio.Event()
        self._waiting.setdefault(uid, set()).add(event)
        try:
            yield event
        finally:
            waiting = self._waiting[uid]
            waiting.discard(event)
            if not waiting:
                del self._waiting[uid]

    def _take(self, kind: Kind, change: Change) -> None:
        uid = names.uid_of(change.object)
        key = (kind, uid)
        if change.type == "deleted":
            objects = self._objects.get(key, {})
            objects.pop(change.name, None)
            if not objects:
                self._objects.pop(key, None)
        else:
            self._objects.setdefault(key, {})[change.name] = change.object
        for event in self._waiting.get(uid, ()):
            event.set()
        if kind not in self.kinds and kind != POD:
            return
        for observer in tuple(self._observers):
            observer(kind, change)


def resource_of(manifest: Manifest) -> Resource:
    """An object as a resource; its id is "kind/name", its type the kind with its group."""
    metadata = manifest["metadata"]
    group = manifest["apiVersion"].rpartition("/")[0]
    type_ = manifest["kind"].lower() + (f".{group}" if group else "")
    detail = f"revision {names.revision_of(manifest)} of {_function_of(manifest)}"
    return Resource(type_, metadata["name"], names.uid_of(manifest) or None, detail)


def _function_of(manifest: Manifest) -> str:
    return manifest["metadata"].get("labels", {}).get(names.FUNCTION, "?")


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
    finally:
        event.clear()


@contextmanager
def translated() -> Generator[None]:
    """What the API server refuses outside of a deploy: it is tried again by who asked."""
    try:
        yield
    except KubeError as error:
        raise DriverUnavailable(f"the cluster: {error}") from error


@asynccontextmanager
async def deploying() -> AsyncGenerator[None]:
    """What the API server refuses while a revision is made: for good, or for now."""
    try:
        yield
    except KubeError as error:
        final = failures.refused(error)
        if final is None:
            raise DriverUnavailable(f"the cluster: {error}") from error
        raise final from error


def _lets_go(kind: Kind, manifest: Manifest) -> bool:
    """Whether what it made is found by its labels, and is deleted for itself."""
    template = manifest.get("spec", {}).get("template", {}).get("metadata", {}).get("labels", {})
    own = manifest["metadata"]["labels"]
    found_by = (names.INSTALLATION, names.UID)
    return kind in _LETS_GO and all(template.get(name) == own.get(name) for name in found_by)
