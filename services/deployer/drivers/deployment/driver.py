"""Runs each revision of a function as a Deployment; the gateways reach its pods directly."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TypeVar

import structlog

from libs.kube.cluster import Cluster
from libs.kube.errors import KubeError, NotFound
from libs.kube.kinds import DEPLOYMENT, POD, Manifest, kind_of
from services.deployer.drivers import base
from services.deployer.drivers.cluster import failures, names
from services.deployer.drivers.deployment.follower import Follower
from services.deployer.drivers.deployment.manifests import manifests
from services.deployer.drivers.deployment.pods import address_of, age_of, annotation, endpoint_of
from services.deployer.drivers.deployment.residue import Residue
from services.deployer.drivers.deployment.rollout import Rollout
from services.deployer.drivers.deployment.shape import Setup
from services.deployer.drivers.deployment.world import SETTLED, WOKEN, World

log = structlog.get_logger()

_T = TypeVar("_T")
_AWAKE_SECONDS = 5.0
"""Whoever woke a function within this time finds it awake: longer than gateways take a route."""
_AT_ONCE = 8
_COST = "controller.kubernetes.io/pod-deletion-cost"


class DeploymentDriver:
    """Implements `base.Driver` and `base.Scales`. Every replica of the deployer has one."""

    reserves = False
    shared = True

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._cluster: Cluster | None = None
        self._world: World | None = None
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def start(self) -> None:
        """Connect, and wait until what there is is known. Raises DriverUnavailable."""
        cluster = await _answered(Cluster.connect(self._setup.cluster.kubeconfig))
        self._cluster = cluster
        setup = self._setup
        self._world = World(cluster, setup.cluster.namespace, names.selector(setup.cluster))
        self._residue = Residue(cluster, self._setup)
        await _answered(self._world.open())

    async def close(self) -> None:
        if self._world is not None:
            await self._world.close()
        if self._cluster is not None:
            await self._cluster.close()

    async def reserve(self, uid: str, kind: str, address_hint: str | None) -> base.Endpoint:
        """There is nothing to reserve: requests wait at the gateway."""
        return base.Endpoint("")

    async def deploy(self, workload: base.Workload) -> base.Deployed:
        cluster, world = self._parts()
        begin = time.monotonic()
        replicas = max(1, workload.min_instances)
        rollout = Rollout(cluster, world, self._setup, workload)
        try:
            await self._apply(manifests(workload, self._setup, replicas))
            pod = await rollout.until_serving()
        except KubeError as error:
            failure = failures.refused(error)
            if failure is None:
                raise base.DriverUnavailable(f"the cluster: {error}") from error
            await self._discard(workload)
            raise failure from error
        except base.DeployFailed:
            await self._discard(workload)
            raise
        endpoint = world.endpoint(workload.uid, workload.revision)
        return base.Deployed(
            instance=pod["metadata"]["name"],
            memory_bytes=0,
            seconds=time.monotonic() - begin,
            endpoint=endpoint if endpoint.address else endpoint_of([pod]),
            detail=f"pod {pod['metadata']['name']}, {age_of(pod, datetime.now(UTC)):.1f} s old",
        )

    async def _discard(self, workload: base.Workload) -> None:
        """Remove a revision that failed; what served before goes on."""
        name = names.revision_name(workload.uid, workload.revision)
        try:
            await self._residue.remove_revision(workload.uid, workload.revision)
        except KubeError as error:
            log.warning("revision_left", name=name, error=str(error))

    async def restore(
        self, workloads: Sequence[base.Workload], endpoints: Mapping[str, base.Endpoint]
    ) -> None:
        """Make what is not there of what serves, and settle what was not settled."""
        await asyncio.gather(*(self._restore(each, endpoints) for each in workloads))

    async def _restore(
        self, workload: base.Workload, endpoints: Mapping[str, base.Endpoint]
    ) -> None:
        _, world = self._parts()
        uid, revision = workload.uid, workload.revision
        found = world.deployments(uid).get(revision)
        async with self._slots:
            if found is None:
                awake = bool(endpoints.get(uid, base.Endpoint("")).address)
                replicas = max(1, workload.min_instances) if awake else 0
                await _answered(self._apply(manifests(workload, self._setup, replicas)))
            if found is None or not annotation(found, SETTLED):
                await self.settle(uid, revision)

    async def settle(self, uid: str, revision: int) -> None:
        """Mark the revision as the one that serves; end the older ones, gracefully."""
        cluster, _ = self._parts()
        name = names.revision_name(uid, revision)
        marked: Manifest = {"metadata": {"annotations": {SETTLED: "true"}}}
        try:
            await cluster.patch(DEPLOYMENT, self._setup.cluster.namespace, name, marked)
            await self._residue.remove_older(uid, revision)
        except NotFound:
            return  # the function has ended, or somebody removed it and it is repaired
        except KubeError as error:
            raise base.DriverUnavailable(f"the cluster: {error}") from error

    async def wake(self, uid: str) -> None:
        """Say on the Deployment that it is wanted, for the replica that follows, and scale it."""
        cluster, world = self._parts()
        deployment = _newest(world, uid)
        if deployment is None:
            return
        name = deployment["metadata"]["name"]
        woken: Manifest = {"metadata": {"annotations": {WOKEN: f"{time.time():.3f}"}}}
        try:
            now = await cluster.patch(DEPLOYMENT, self._setup.cluster.namespace, name, woken)
            if not now["spec"].get("replicas"):
                await cluster.scale(DEPLOYMENT, self._setup.cluster.namespace, name, 1)
        except NotFound:
            return
        except KubeError as error:
            raise base.DriverUnavailable(f"the cluster: {error}") from error

    async def sleep(self, uid: str) -> None:
        """Have no instance, unless somebody has woken it meanwhile."""
        cluster, world = self._parts()
        deployment = world.settled(uid)
        if deployment is None:
            return
        namespace, name = self._setup.cluster.namespace, deployment["metadata"]["name"]
        try:
            # Whoever wakes it writes that first and looks at the number then: one of both sees
            # what the other did.
            if _woken(await cluster.get(DEPLOYMENT, namespace, name)):
                return
            await cluster.scale(DEPLOYMENT, namespace, name, 0)
            if _woken(await cluster.get(DEPLOYMENT, namespace, name)):
                await cluster.scale(DEPLOYMENT, namespace, name, 1)
        except NotFound:
            return
        except KubeError as error:
            raise base.DriverUnavailable(f"the cluster: {error}") from error

    async def scale(self, uid: str, instances: int, keep: Sequence[str]) -> None:
        cluster, world = self._parts()
        deployment = world.settled(uid)
        if deployment is None or deployment["spec"].get("replicas") == instances:
            return
        namespace, name = self._setup.cluster.namespace, deployment["metadata"]["name"]
        serving = world.serving(uid, names.revision_of(deployment))
        goes: Manifest = {"metadata": {"annotations": {_COST: "-1"}}}
        try:
            if instances < deployment["spec"].get("replicas", 0):
                for pod in serving:
                    if address_of(pod) not in keep:
                        await cluster.patch(POD, namespace, pod["metadata"]["name"], goes)
            await cluster.scale(DEPLOYMENT, namespace, name, instances)
        except NotFound:
            return
        except KubeError as error:
            raise base.DriverUnavailable(f"the cluster: {error}") from error

    async def fail(self, uid: str, status: int, body: bytes) -> None:
        """Remove what there is of it; the gateways say why it failed."""
        await self.remove([uid])

    async def touch(self, uid: str, in_flight: int) -> None:
        """Nothing: the scaler reads the counts of all gateways from their rows."""

    async def remove(self, uids: Sequence[str]) -> dict[str, list[base.Resource]]:
        return await _answered(self._residue.remove(uids))

    def notifications(self) -> AsyncGenerator[base.Notification]:
        _, world = self._parts()
        return Follower(world).notifications()

    async def list_resources(self) -> list[base.Resource]:
        return await _answered(self._residue.found())

    async def remove_resource(self, resource: base.Resource) -> None:
        await _answered(self._residue.remove_one(resource))

    async def _apply(self, objects: Sequence[Manifest]) -> None:
        """What pods read is there before the Deployment that makes them."""
        cluster, _ = self._parts()
        first = [each for each in objects if kind_of(each) != DEPLOYMENT]
        last = [each for each in objects if kind_of(each) == DEPLOYMENT]
        for group in (first, last):
            await _all(cluster.apply(each) for each in group)

    def _parts(self) -> tuple[Cluster, World]:
        if self._cluster is None or self._world is None:
            raise base.DriverUnavailable("not connected to the cluster yet")
        return self._cluster, self._world


async def _all(work: Iterable[Awaitable[object]]) -> None:
    """Wait for all; then raise what the first that failed raised."""
    for result in await asyncio.gather(*work, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


async def _answered(work: Awaitable[_T]) -> _T:
    """Wait for `work`. Raises DriverUnavailable for whatever the API server did not do."""
    try:
        return await work
    except KubeError as error:
        raise base.DriverUnavailable(f"the cluster: {error}") from error


def _newest(world: World, uid: str) -> Manifest | None:
    """The Deployment that serves: the settled one, else the first that was made."""
    found = world.deployments(uid)
    return world.settled(uid) or (found[min(found)] if found else None)


def _woken(deployment: Manifest | None) -> bool:
    woken = annotation(deployment, WOKEN) if deployment else ""
    return time.time() - float(woken or 0) < _AWAKE_SECONDS
