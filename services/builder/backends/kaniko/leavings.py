"""What a build leaves on the cluster and in the bucket, found by labels and by prefix."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Collection, Iterable

from libs.blobs import BlobError, Bucket
from libs.kube.cluster import Cluster
from libs.kube.errors import KubeError
from libs.kube.kinds import POD as POD_KIND
from libs.kube.kinds import SECRET as SECRET_KIND
from libs.kube.kinds import Kind
from services.builder.backends.base import CONTEXT, POD, SECRET, Thing, World
from services.builder.backends.kaniko import failures
from services.builder.backends.kaniko.failures import Manifest
from services.builder.backends.kaniko.pods import BUILD, UID, Place
from services.builder.failures import BuildFailed

_SUFFIX = ".tar.gz"
_KINDS = {POD: POD_KIND, SECRET: SECRET_KIND}


class Leavings:
    """Pods, Secrets and contexts of builds."""

    def __init__(self, cluster: Cluster, bucket: Bucket, place: Place, prefix: str) -> None:
        """`prefix` is what all keys in the bucket begin with, without a slash at its end."""
        self._cluster = cluster
        self._bucket = bucket
        self._place = place
        self._prefix = f"{prefix}/contexts/".lstrip("/")

    def key(self, build: str, uid: str) -> str:
        """Return the key of a build's context."""
        return f"{self._prefix}{build}-{uid}{_SUFFIX}"

    async def remove_build(self, build: str, uid: str) -> str:
        """Remove all of one build; return why something could not be, "" when all is gone."""
        objects = self._remove_objects({uid}, f"{self._place.selector},{UID}={uid}")
        failed = await asyncio.gather(objects, self._remove_context(self.key(build, uid)))
        return "; ".join([*failed[0].values(), *([failed[1]] if failed[1] else [])])

    async def remove_builds(self, builds: Iterable[tuple[str, str]]) -> dict[str, str]:
        """Remove all of builds (id, uid); by uid, why something could not be."""
        wanted = {uid: build for build, uid in builds}
        failed = await self._remove_objects(wanted, self._place.selector)
        for uid, build in wanted.items():
            if why := await self._remove_context(self.key(build, uid)):
                failed[uid] = why
        return failed

    async def look(self) -> World:
        """Look at pods, Secrets and contexts. Raises `BuildFailed` where they cannot be seen."""
        things: list[Thing] = []
        looked_at: list[str] = []
        for type_, kind in _KINDS.items():
            found = await self._listed(kind)
            things += [_thing(type_, each) for each in found]
            looked_at.append(f"{kind.plural} of builds ({len(found)})")
        try:
            keys = [blob.key async for blob in self._bucket.list(self._prefix)]
        except BlobError as error:
            raise failures.storage(str(error)) from error
        things += [self._context(key) for key in keys]
        looked_at.append(f"contexts ({len(keys)})")
        return World(things, looked_at)

    async def remove_thing(self, thing: Thing) -> str:
        """Remove an orphan; return why it could not be, "" when it is gone."""
        if thing.type == CONTEXT:
            return await self._remove_context(thing.id)
        return await _why_not(
            self._cluster.delete(_KINDS[thing.type], self._place.namespace, thing.id)
        )

    async def _remove_objects(self, uids: Collection[str], selector: str) -> dict[str, str]:
        failed: dict[str, str] = {}
        for kind in _KINDS.values():
            try:
                found = await self._cluster.list(kind, self._place.namespace, selector)
            except KubeError as error:
                return dict.fromkeys(uids, f"{kind.plural} of builds: {error}")
            for each in found:
                metadata: Manifest = each["metadata"]
                uid = str(metadata["labels"].get(UID, ""))
                if uid not in uids:
                    continue
                gone = self._cluster.delete(kind, self._place.namespace, metadata["name"])
                if why := await _why_not(gone):
                    failed[uid] = why
        return failed

    async def _remove_context(self, key: str) -> str:
        try:
            await self._bucket.delete(key)
        except BlobError as error:
            return f"context {key}: {error}"
        return ""

    async def _listed(self, kind: Kind) -> list[Manifest]:
        try:
            return await self._cluster.list(kind, self._place.namespace, self._place.selector)
        except KubeError as error:
            raise _not_seen(kind, error) from error

    def _context(self, key: str) -> Thing:
        name, _, uid = key.removeprefix(self._prefix).removesuffix(_SUFFIX).partition("-")
        return Thing(CONTEXT, key, name, uid)


def _thing(type_: str, manifest: Manifest) -> Thing:
    metadata: Manifest = manifest["metadata"]
    labels: dict[str, str] = metadata.get("labels", {})
    return Thing(type_, metadata["name"], labels.get(BUILD, ""), labels.get(UID, ""))


def _not_seen(kind: Kind, error: KubeError) -> BuildFailed:
    outcome = failures.of_cluster(error)
    if isinstance(outcome, failures.Failed | failures.Passing):
        return outcome.failure
    return failures.not_started(f"{kind.plural}: {error}")


async def _why_not(gone: Awaitable[bool]) -> str:
    try:
        await gone
    except KubeError as error:
        return str(error)
    return ""
