"""Runs each revision of a function as a Deployment; the gateways reach its pods directly."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing

import structlog

from libs.kube.errors import KubeError, NotFound
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
from services.deployer.drivers import base
from services.deployer.drivers.cluster import names, residue
from services.deployer.drivers.cluster.follower import Follower
from services.deployer.drivers.cluster.world import World, deploying, translated
from services.deployer.drivers.deployment.manifests import manifests
from services.deployer.drivers.deployment.moves import WOKEN, Moves
from services.deployer.drivers.deployment.pods import address_of, annotation, endpoint_of
from services.deployer.drivers.deployment.rollout import Rollout
from services.deployer.drivers.deployment.serving import SETTLED, Serving
from services.deployer.drivers.deployment.shape import Setup

log = structlog.get_logger()

KINDS = (DEPLOYMENT, REPLICA_SET, SERVICE, CONFIG_MAP, SECRET)
_REVISIONED = (DEPLOYMENT, CONFIG_MAP, SECRET)
_AWAKE_SECONDS = 5.0
"""Whoever woke a function within this time finds it awake: longer than gateways take a route."""
_SEEN_SECONDS = 1.0
_AT_ONCE = 8
_COST = "controller.kubernetes.io/pod-deletion-cost"


class DeploymentDriver:
    """Implements `base.Driver` and `base.Scales`. Every replica of the deployer has one."""

    reserves = False
    shared = True

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._namespace = setup.cluster.namespace
        self._world = World(setup.cluster, KINDS)
        self._serving = Serving(self._world)
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._known: set[str] = set()

    async def start(self) -> None:
        await self._world.start()

    async def close(self) -> None:
        self._serving.close()
        await self._world.close()

    async def reserve(self, uid: str, kind: str, address_hint: str | None) -> base.Endpoint:
        """There is nothing to reserve: requests wait at the gateway."""
        return base.Endpoint("")

    async def deploy(
        self, workload: base.Workload, early: base.Early | None = None
    ) -> base.Deployed:
        await self._world.ready()
        begin = time.monotonic()
        replicas = max(1, workload.min_instances)
        try:
            async with deploying():
                await self._apply(manifests(workload, self._setup, replicas))
            pod = await Rollout(self._world, self._serving, self._setup, workload).until_serving()
        except base.DeployFailed:
            await self._discard(workload)
            raise
        serving = self._serving.instances(workload.uid, workload.revision)
        return base.Deployed(
            instance=pod["metadata"]["name"],
            memory_bytes=0,
            seconds=time.monotonic() - begin,
            endpoint=endpoint_of(serving or [pod]),
            detail=f"pod {pod['metadata']['name']}",
        )

    async def _discard(self, workload: base.Workload) -> None:
        """Remove a revision that failed; what served before goes on."""
        uid, revision = workload.uid, workload.revision
        try:
            await self._world.delete(
                [(kind, each) for kind, each in self._revisioned(uid)
                 if names.revision_of(each) == revision]
            )  # fmt: skip
            for pod in self._world.pods(uid, revision):
                await self._world.delete([(POD, pod)])
        except KubeError as error:
            log.warning("revision_left", uid=uid, revision=revision, error=str(error))

    def _revisioned(self, uid: str) -> list[tuple[Kind, Manifest]]:
        return [(kind, each) for kind in _REVISIONED for each in self._world.all_of(kind, uid)]

    async def restore(
        self, workloads: Sequence[base.Workload], endpoints: Mapping[str, base.Endpoint]
    ) -> None:
        """Settle what was not settled. What is not there is found and made by who follows."""
        await self._world.ready()
        self._known.update(workload.uid for workload in workloads)
        await asyncio.gather(*(self._settle_again(each) for each in workloads))

    async def _settle_again(self, workload: base.Workload) -> None:
        found = self._serving.deployments(workload.uid).get(workload.revision)
        if found is not None and not annotation(found, SETTLED):
            async with self._slots:
                await self.settle(workload.uid, workload.revision)

    async def settle(self, uid: str, revision: int) -> None:
        """Mark the revision as the one that serves; end the older ones, gracefully."""
        name = names.revision_name(uid, revision)
        marked: Manifest = {"metadata": {"annotations": {SETTLED: "true"}}}
        with translated():
            try:
                await self._world.cluster.patch(DEPLOYMENT, self._namespace, name, marked)
            except NotFound:
                return  # the function has ended, or somebody removed it and it is put right
            old = [(k, m) for k, m in self._revisioned(uid) if names.revision_of(m) < revision]
            await self._world.delete(old)
        # What comes next finds it settled here as well.
        await self._world.until(uid, lambda: self._serving.settled(uid), _SEEN_SECONDS)

    async def wake(self, uid: str) -> None:
        """Say on the Deployment that it is wanted, for the replica that follows, and scale it."""
        await self._world.ready()
        found = self._serving.deployments(uid)
        if not found:
            return
        deployment = self._serving.settled(uid) or found[min(found)]
        name = deployment["metadata"]["name"]
        woken: Manifest = {"metadata": {"annotations": {WOKEN: f"{time.time():.3f}"}}}
        with translated():
            try:
                now = await self._world.cluster.patch(DEPLOYMENT, self._namespace, name, woken)
                if not now["spec"].get("replicas"):
                    await self._world.cluster.scale(DEPLOYMENT, self._namespace, name, 1)
            except NotFound:
                return  # it has ended

    async def sleep(self, uid: str) -> None:
        """Have no instance, unless somebody has woken it meanwhile: then DriverUnavailable.

        Whoever wakes it writes that first and looks at the number then: one of the two sees what
        the other did.
        """
        deployment = self._settled(uid)
        cluster, name = self._world.cluster, deployment["metadata"]["name"]
        with translated():
            try:
                if _is_wanted(await cluster.get(DEPLOYMENT, self._namespace, name)):
                    raise base.DriverUnavailable("it was woken a moment ago")
                await cluster.scale(DEPLOYMENT, self._namespace, name, 0)
                if _is_wanted(await cluster.get(DEPLOYMENT, self._namespace, name)):
                    await cluster.scale(DEPLOYMENT, self._namespace, name, 1)
            except NotFound:
                return  # it has ended

    async def scale(self, uid: str, instances: int, keep: Sequence[str]) -> None:
        """See `base.Scales.scale`."""
        deployment = self._settled(uid)
        if deployment["spec"].get("replicas") == instances:
            return
        cluster, name = self._world.cluster, deployment["metadata"]["name"]
        goes: Manifest = {"metadata": {"annotations": {_COST: "-1"}}}
        with translated():
            try:
                if instances < deployment["spec"].get("replicas", 0):
                    for pod in self._serving.instances(uid, names.revision_of(deployment)):
                        if address_of(pod) not in keep:
                            await cluster.patch(POD, self._namespace, pod["metadata"]["name"], goes)
                await cluster.scale(DEPLOYMENT, self._namespace, name, instances)
            except NotFound:
                return  # it has ended, or a pod has: the next look decides anew

    def _settled(self, uid: str) -> Manifest:
        """Raises DriverUnavailable while a rollout is under way."""
        deployment = self._serving.settled(uid)
        if deployment is None:
            raise base.DriverUnavailable("no revision of it is settled")
        return deployment

    async def fail(self, uid: str, status: int, body: bytes) -> None:
        """Remove what there is of it; the gateways say why it failed."""
        removed = await self.remove([uid])
        if left := base.still_there(removed[uid]):
            raise base.DriverUnavailable(left)

    async def touch(self, uid: str, in_flight: int) -> None:
        """Nothing: the scaler reads the counts of all gateways from their rows."""

    async def remove(self, uids: Sequence[str]) -> dict[str, list[base.Resource]]:
        self._known.difference_update(uids)
        return await self._world.remove(uids)

    async def notifications(self, wanted: base.Wanted) -> AsyncGenerator[base.Notification]:
        await self._world.ready()
        follower = Follower(self._world, wanted, self._desired, lambda uid: ())
        moves = Moves(self._serving, follower.tell)
        self._serving.observers.add(moves.look)
        try:
            for uid in self._world.uids(DEPLOYMENT):
                moves.look(uid)
            async with aclosing(follower.notifications(self._known)) as notifications:
                async for notification in notifications:
                    yield notification
        finally:
            self._serving.observers.discard(moves.look)
            moves.close()

    def _desired(self, workload: base.Workload) -> list[Manifest]:
        """What a function that serves has; how many instances is not for drift to say."""
        name = names.revision_name(workload.uid, workload.revision)
        found = self._world.one(DEPLOYMENT, name)
        replicas = found["spec"].get("replicas", 1) if found else max(1, workload.min_instances)
        wanted = manifests(workload, self._setup, replicas)
        for each in wanted:
            if kind_of(each) == DEPLOYMENT:
                each["metadata"]["annotations"][SETTLED] = "true"
        return wanted

    async def list_resources(self) -> list[base.Resource]:
        return await residue.list_resources(self._world)

    async def remove_resource(self, resource: base.Resource) -> None:
        await residue.remove_resource(self._world, resource)

    async def _apply(self, objects: Sequence[Manifest]) -> None:
        """Apply. What pods read is there before the Deployment that makes them."""
        first = [each for each in objects if kind_of(each) != DEPLOYMENT]
        results = await asyncio.gather(
            *(self._world.apply([each]) for each in first), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result
        await self._world.apply([each for each in objects if kind_of(each) == DEPLOYMENT])


def _is_wanted(deployment: Manifest | None) -> bool:
    woken = annotation(deployment, WOKEN) if deployment else ""
    return time.time() - float(woken or 0) < _AWAKE_SECONDS
