"""What there is of functions in the cluster, found by label, and how it goes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from libs.kube.cluster import Cluster
from libs.kube.kinds import (
    CONFIG_MAP,
    DEPLOYMENT,
    POD,
    REPLICA_SET,
    SECRET,
    SERVICE,
    Kind,
    Manifest,
    kind_of,
)
from services.deployer.drivers.base import Resource
from services.deployer.drivers.cluster import names
from services.deployer.drivers.deployment.shape import Setup

# What makes others comes before what it makes.
KINDS = (DEPLOYMENT, REPLICA_SET, POD, SERVICE, CONFIG_MAP, SECRET)
_BY_TYPE = {kind.name.lower(): kind for kind in KINDS}
_UIDS_A_LIST = 50
_AT_ONCE = 16
_GONE_SECONDS = 20.0
_AGAIN_SECONDS = 0.1


class Residue:
    """The objects of this Mayfly's functions. Every method raises KubeError."""

    def __init__(self, cluster: Cluster, setup: Setup) -> None:
        self._cluster = cluster
        self._settings = setup.cluster
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def found(self) -> list[Resource]:
        """Everything there is, whatever any database says."""
        objects = await self._list(names.selector(self._settings))
        return [_resource(each) for each in objects]

    async def remove(self, uids: Sequence[str]) -> dict[str, list[Resource]]:
        """Remove all there is of functions, at once; return by uid what that was."""
        removed: dict[str, list[Resource]] = {uid: [] for uid in uids}
        chunks = [uids[at : at + _UIDS_A_LIST] for at in range(0, len(uids), _UIDS_A_LIST)]
        for chunk in chunks:
            for each in await self._remove_all(names.uids_selector(self._settings, chunk)):
                removed[names.uid_of(each)].append(_resource(each))
        return removed

    async def remove_revision(self, uid: str, revision: int) -> None:
        """Remove a revision that served nobody; what all revisions share stays."""
        selector = f"{names.uids_selector(self._settings, [uid])},{names.REVISION}={revision}"
        await self._remove_all(selector)

    async def remove_older(self, uid: str, revision: int) -> None:
        """Remove older revisions; their pods finish what they were asked."""
        objects = await self._list(names.uids_selector(self._settings, [uid]))
        old = [each for each in objects if 0 < names.revision_of(each) < revision]
        kinds = (DEPLOYMENT, CONFIG_MAP, SECRET)
        await asyncio.gather(*(self._delete(each) for each in old if kind_of(each) in kinds))

    async def remove_one(self, resource: Resource) -> None:
        """Remove a thing that was found."""
        namespace, _, name = resource.id.partition("/")
        kind = _BY_TYPE[resource.type]
        await self._cluster.delete(kind, namespace, name, grace_seconds=_grace(kind))

    async def _remove_all(self, selector: str) -> list[Manifest]:
        """Remove until nothing is found: a controller may have been making a pod meanwhile."""
        seen: dict[str, Manifest] = {}
        clock = asyncio.get_running_loop()
        deadline = clock.time() + _GONE_SECONDS
        while objects := await self._list(selector):
            for kind in KINDS:
                of_kind = [each for each in objects if kind_of(each) == kind]
                await asyncio.gather(*(self._delete(each, _grace(kind)) for each in of_kind))
            seen |= {each["metadata"]["uid"]: each for each in objects}
            if clock.time() > deadline:
                break  # it is found again by whoever looks at what is left
            if any(kind_of(each) == POD for each in objects):
                await asyncio.sleep(_AGAIN_SECONDS)
        return list(seen.values())

    async def _list(self, selector: str) -> list[Manifest]:
        found = await asyncio.gather(
            *(self._cluster.list(kind, self._settings.namespace, selector) for kind in KINDS)
        )
        return [each for objects in found for each in objects]

    async def _delete(self, manifest: Manifest, grace: int | None = None) -> None:
        metadata = manifest["metadata"]
        if "deletionTimestamp" in metadata and grace is None:
            return
        async with self._slots:
            await self._cluster.delete(
                kind_of(manifest), metadata["namespace"], metadata["name"],
                uid=metadata["uid"], grace_seconds=grace,
            )  # fmt: skip


def _grace(kind: Kind) -> int | None:
    """The lease has ended: nothing is waited for but the container's end itself."""
    return 0 if kind == POD else None


def _resource(manifest: Manifest) -> Resource:
    metadata = manifest["metadata"]
    revision = names.revision_of(manifest)
    return Resource(
        type=manifest["kind"].lower(),
        id=f"{metadata['namespace']}/{metadata['name']}",
        uid=names.uid_of(manifest) or None,
        detail=f"revision {revision}" if revision else "",
    )
