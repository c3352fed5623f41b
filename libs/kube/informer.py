"""What there is of one kind, kept up to date by a watch, whatever happens to the watch.

The rules are those of "Efficient detection of changes" in Kubernetes' API concepts: list, watch
from the list's resource version, take bookmarks, and list anew when the version is too old (410).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, TypeVar, cast

import structlog

from libs.kube.errors import Expired, KubeError, Unavailable, error_of
from libs.kube.kinds import Kind, Manifest
from libs.kube.transport import Transport

log = structlog.get_logger()

_SERVED_SECONDS = 290
_SILENCE_SECONDS = 90.0  # bookmarks come once a minute
_BACKOFF_SECONDS = (0.05, 5.0)
_T = TypeVar("_T")

Lister = Callable[[Kind, str, str], Awaitable[tuple[list[Manifest], str]]]


@dataclass(frozen=True)
class Change:
    """What has become of an object; with "deleted" it is as it was last seen."""

    type: Literal["added", "modified", "deleted"]
    object: Manifest

    @property
    def name(self) -> str:
        return self.object["metadata"]["name"]


class Informer:
    """Entered, it lists and watches until it is left; made by `Cluster.watch`.

    objects: by name, or "namespace/name" where it is of all namespaces; without managedFields.
    They are not to be changed. synced: set once the first list is there. error: why there is
    nothing new at the moment; None: all is well.
    """

    def __init__(
        self, transport: Transport, lister: Lister, kind: Kind, namespace: str, selector: str
    ) -> None:
        self.kind = kind
        self.namespace = namespace
        self.synced = asyncio.Event()
        self.error: KubeError | None = None
        self._transport = transport
        self._lister = lister
        self._selector = selector
        self._objects: dict[str, Manifest] = {}
        self.objects: Mapping[str, Manifest] = MappingProxyType(self._objects)
        self._observers: set[Callable[[Change], None]] = set()
        self._version = ""
        self._received = False
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Informer:
        """Begin; that the API server does not answer is no error here, see `ready`."""
        name = f"informer-{self.kind.plural}"
        self._task = asyncio.create_task(self._run(), name=name)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def ready(self, timeout: float) -> None:
        """Wait for the first list. Raises KubeError with the reason why there is none."""
        try:
            async with asyncio.timeout(timeout):
                await self.synced.wait()
        except TimeoutError:
            raise self.error or Unavailable(f"no list of {self.kind.plural} yet") from None

    def observe(self, observer: Callable[[Change], None]) -> Callable[[], None]:
        """Call `observer` with each change, at once and in order; returns what ends that.

        It must return at once and not raise. `objects` is up to date when it is called.
        """
        self._observers.add(observer)
        return lambda: self._observers.discard(observer)

    @asynccontextmanager
    async def subscribe(self) -> AsyncGenerator[AsyncIterator[Change]]:
        """All changes from now on, after what there is now as "added"; none is lost."""
        queue: asyncio.Queue[Change] = asyncio.Queue()
        for each in self._objects.values():
            queue.put_nowait(Change("added", each))
        end = self.observe(queue.put_nowait)
        try:
            yield _taken(queue)
        finally:
            end()

    async def until(
        self, name: str, predicate: Callable[[Manifest | None], _T | None], timeout: float
    ) -> _T:
        """Wait until `predicate` of an object (None: it is not there) returns something.

        What it raises is raised. Raises TimeoutError, and KubeError where there is no list.
        """
        changed = asyncio.Event()

        def observer(change: Change) -> None:
            if self._key(change.object) == name:
                changed.set()

        end = self.observe(observer)
        try:
            async with asyncio.timeout(timeout):
                await self.synced.wait()
                while (found := predicate(self._objects.get(name))) is None:
                    await changed.wait()
                    changed.clear()
                return found
        except TimeoutError:
            if self.error is not None:
                raise self.error from None
            raise
        finally:
            end()

    def _key(self, manifest: Manifest) -> str:
        metadata = manifest["metadata"]
        if self.namespace or not self.kind.namespaced:
            return metadata["name"]
        return f"{metadata['namespace']}/{metadata['name']}"

    async def _run(self) -> None:
        least, most = _BACKOFF_SECONDS
        pause = least
        while True:
            try:
                if not self._version:
                    await self._list()
                await self._watch()
                pause = least
                continue
            except Expired:
                self._version = ""
                pause_now = 0.0
            except KubeError as error:
                if pause > 1.0 or not isinstance(error, Unavailable):
                    kind = self.kind.plural
                    log.warning("watch_broken", kind=kind, error=str(error), seconds=pause)
                if self._received:
                    pause, self._received = least, False
                self.error = error
                asked = error.retry_after if isinstance(error, Unavailable) else 0.0
                pause_now = max(asked, pause * random.uniform(0.8, 1.2))
                pause = min(most, pause * 2)
            await asyncio.sleep(pause_now)

    async def _list(self) -> None:
        objects, version = await self._lister(self.kind, self.namespace, self._selector)
        current = {self._key(each): each for each in objects}
        for name in [name for name in self._objects if name not in current]:
            self._take("DELETED", self._objects[name])
        for name, each in current.items():
            before = self._objects.get(name)
            if before is None or _version(before) != _version(each):
                self._take("MODIFIED", each)
        self._version = version
        self.error = None
        self.synced.set()

    async def _watch(self) -> None:
        """One watch, until the server ends it."""
        self._received = False
        query: dict[str, Any] = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": _SERVED_SECONDS,
        }
        if self._selector:
            query["labelSelector"] = self._selector
        path = self.kind.path(self.namespace)
        async with self._transport.stream(path, query, _SILENCE_SECONDS) as lines:
            self.error = None
            async for line in lines:
                try:
                    event = json.loads(line)
                except ValueError as error:  # cut off in the middle
                    raise Unavailable(f"watch of {self.kind.plural}: {error}") from error
                self._received = True
                self._event(event)
        # A server that is ending says goodbye at once to each new watch.
        if not self._received:
            raise Unavailable(f"watch of {self.kind.plural} ended without a word")

    def _event(self, event: dict[str, Any]) -> None:
        type_, manifest = event["type"], event["object"]
        if type_ == "ERROR":
            status = cast(int, manifest.get("code") or 500)
            raise error_of(status, json.dumps(manifest).encode())
        self._version = _version(manifest)
        if type_ != "BOOKMARK":
            self._take(type_, manifest)

    def _take(self, type_: str, manifest: Manifest) -> None:
        manifest["metadata"].pop("managedFields", None)
        key = self._key(manifest)
        if type_ == "DELETED":
            self._objects.pop(key, None)
            change = Change("deleted", manifest)
        else:
            before = self._objects.get(key)
            self._objects[key] = manifest
            if before is not None and before["metadata"]["uid"] != manifest["metadata"]["uid"]:
                # Deleted and made again while nobody looked.
                self._tell(Change("deleted", before))
                before = None
            change = Change("added" if before is None else "modified", manifest)
        self._tell(change)

    def _tell(self, change: Change) -> None:
        for observer in tuple(self._observers):
            observer(change)


def _version(manifest: Manifest) -> str:
    return manifest["metadata"]["resourceVersion"]


async def _taken(queue: asyncio.Queue[Change]) -> AsyncGenerator[Change]:
    while True:
        yield await queue.get()
