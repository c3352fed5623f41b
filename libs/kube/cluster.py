"""The API server's objects: apply, read, delete, follow."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import datetime
from typing import Any, TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_delay
from tenacity.wait import wait_random_exponential

from libs.kube.errors import AlreadyExists, Conflict, Expired, NotFound, Unavailable
from libs.kube.informer import Informer
from libs.kube.kinds import POD, Kind, Manifest, kind_of
from libs.kube.transport import Transport

FIELD_MANAGER = "mayfly"
_PAGE = 500
_PATIENCE_SECONDS = 15.0
_BACKOFF = wait_random_exponential(multiplier=0.1, max=3.0)
_T = TypeVar("_T")


class Cluster:
    """One API server. Every method raises `libs.kube.errors.KubeError`.

    Calls that may be repeated (all but `create`) are, while the server cannot be reached or is
    busy, for `patience` seconds; then Unavailable is raised.
    """

    def __init__(self, transport: Transport, patience: float = _PATIENCE_SECONDS) -> None:
        self._transport = transport
        self._patience = patience

    @classmethod
    async def connect(cls, kubeconfig: str = "", patience: float = _PATIENCE_SECONDS) -> Cluster:
        """By the file at `kubeconfig`, else as the pod's service account, else KUBECONFIG.

        Nothing is sent yet. Raises KubeError where none of these can be read.
        """
        return cls(await Transport.connect(kubeconfig), patience)

    async def close(self) -> None:
        await self._transport.close()

    async def apply(self, manifest: Manifest) -> Manifest:
        """Server-side apply: make the object, or make its fields what `manifest` says.

        Fields that somebody else set to other values are taken over; fields that an earlier apply
        had and this one has not are removed. Returns the object as it is now.
        """
        path = _path_of(manifest)
        query = {"fieldManager": FIELD_MANAGER, "force": "true"}
        content_type = "application/apply-patch+yaml"

        async def call() -> Manifest:
            return await self._transport.json("PATCH", path, query, manifest, content_type)

        return await self._patiently(call, (Unavailable, Conflict, AlreadyExists))

    async def create(self, manifest: Manifest) -> Manifest:
        """Make the object. Raises AlreadyExists; repeated only where nothing can have been done."""
        metadata = manifest["metadata"]
        path = kind_of(manifest).path(metadata.get("namespace", ""))
        query = {"fieldManager": FIELD_MANAGER}

        async def call() -> Manifest:
            return await self._transport.json("POST", path, query, manifest)

        return await self._patiently(call, (Conflict,))

    async def get(self, kind: Kind, namespace: str, name: str) -> Manifest | None:
        async def call() -> Manifest | None:
            try:
                return await self._transport.json("GET", kind.path(namespace, name))
            except NotFound:
                return None

        return await self._patiently(call)

    async def list(self, kind: Kind, namespace: str, selector: str = "") -> list[Manifest]:
        """All objects of a kind; of all namespaces where `namespace` is ""."""

        async def call() -> list[Manifest]:
            return (await self.listed(kind, namespace, selector))[0]

        return await self._patiently(call)

    async def listed(self, kind: Kind, namespace: str, selector: str) -> tuple[list[Manifest], str]:
        """One try of `list`, with the resource version that a watch goes on from."""
        objects: list[Manifest] = []
        query: dict[str, Any] = {"limit": _PAGE}
        if selector:
            query["labelSelector"] = selector
        while True:
            try:
                page = await self._transport.json("GET", kind.path(namespace), query)
            except Expired:
                # It took so long that the first page is forgotten: all at once, then.
                objects.clear()
                query.pop("continue", None)
                query.pop("limit", None)
                continue
            # Members of a list do not say what they are.
            own = {"apiVersion": kind.api_version, "kind": kind.name}
            items: list[Manifest] = page.get("items") or []
            objects += [own | each for each in items]
            metadata: Manifest = page.get("metadata") or {}
            if not metadata.get("continue"):
                return objects, metadata.get("resourceVersion", "")
            query["continue"] = metadata["continue"]

    async def delete(
        self,
        kind: Kind,
        namespace: str,
        name: str,
        *,
        uid: str = "",
        grace_seconds: int | None = None,
        propagation: str = "Background",
    ) -> bool:
        """Delete an object; False: it was not there, or it is another one than `uid`."""
        options: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": propagation,
        }
        if uid:
            options["preconditions"] = {"uid": uid}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds

        async def call() -> bool:
            try:
                await self._transport.json("DELETE", kind.path(namespace, name), body=options)
            except (NotFound, Conflict):
                return False
            return True

        return await self._patiently(call)

    async def scale(self, kind: Kind, namespace: str, name: str, replicas: int) -> None:
        """Set how many there are to be. Raises NotFound."""
        path = kind.path(namespace, name, "scale")
        query = {"fieldManager": FIELD_MANAGER}
        body = {"spec": {"replicas": replicas}}

        async def call() -> Manifest:
            content_type = "application/merge-patch+json"
            return await self._transport.json("PATCH", path, query, body, content_type)

        await self._patiently(call, (Unavailable, Conflict))

    async def patch(self, kind: Kind, namespace: str, name: str, changes: Manifest) -> Manifest:
        """Merge `changes` into the object (RFC 7386). Raises NotFound."""
        path = kind.path(namespace, name)
        query = {"fieldManager": FIELD_MANAGER}

        async def call() -> Manifest:
            content_type = "application/merge-patch+json"
            return await self._transport.json("PATCH", path, query, changes, content_type)

        return await self._patiently(call, (Unavailable, Conflict))

    async def logs(
        self,
        namespace: str,
        pod: str,
        container: str = "",
        *,
        follow: bool = False,
        since_seconds: int | None = None,
        since_time: datetime | None = None,
        tail: int | None = None,
        timestamps: bool = False,
        previous: bool = False,
    ) -> AsyncGenerator[str]:
        """A container's lines, until it ends where they are followed; one try.

        since_time: aware; whole seconds count. timestamps: each line begins with its time, as RFC
        3339 with nanoseconds, and a space. Raises NotFound, and Invalid before it has started.
        """
        query: dict[str, Any] = {}
        if container:
            query["container"] = container
        if follow:
            query["follow"] = "true"
        if since_seconds is not None:
            query["sinceSeconds"] = since_seconds
        if since_time is not None:
            query["sinceTime"] = since_time.strftime("%Y-%m-%dT%H:%M:%S%z").replace("+0000", "Z")
        if tail is not None:
            query["tailLines"] = tail
        if timestamps:
            query["timestamps"] = "true"
        if previous:
            query["previous"] = "true"
        path = POD.path(namespace, pod, "log")
        async with self._transport.stream(path, query, 0.0) as lines:
            async for line in lines:
                yield line.decode("utf-8", "replace")

    def watch(self, kind: Kind, namespace: str, selector: str = "") -> Informer:
        """What there is of a kind, kept up to date while the informer is entered."""
        return Informer(self._transport, self.listed, kind, namespace, selector)

    async def _patiently(
        self,
        call: Callable[[], Awaitable[_T]],
        again: tuple[type[Exception], ...] = (Unavailable,),
    ) -> _T:
        retrying = AsyncRetrying(
            stop=stop_after_delay(self._patience),
            wait=_pause,
            retry=retry_if_exception_type(again),
            reraise=True,
        )
        return await retrying(call)


def _pause(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome is not None else None
    asked = error.retry_after if isinstance(error, Unavailable) else 0.0
    return max(asked, _BACKOFF(state))


def _path_of(manifest: Manifest) -> str:
    metadata = manifest["metadata"]
    return kind_of(manifest).path(metadata.get("namespace", ""), metadata["name"])
