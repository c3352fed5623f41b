"""Waits until a new revision answers, or says why it will not."""

from __future__ import annotations

import asyncio

from libs.kube.cluster import Cluster
from libs.kube.errors import Invalid, KubeError, NotFound
from libs.kube.kinds import Manifest
from services.deployer.drivers.base import DeployFailed, Workload
from services.deployer.drivers.cluster import failures
from services.deployer.drivers.cluster.container import CONTAINER
from services.deployer.drivers.cluster.failures import LOG_TAIL, Trouble
from services.deployer.drivers.cluster.pods import condition
from services.deployer.drivers.deployment.pods import running_container
from services.deployer.drivers.deployment.shape import INSTALLER, Setup
from services.deployer.drivers.deployment.world import World

_LOG_SECONDS = 5.0
_MARGIN_SECONDS = 3.0
"""The container itself says more of why it is late than can be seen from here; see start.py."""
_LOOK_SECONDS = 5.0
"""What only time makes a failure is looked at this often."""


class Rollout:
    """One revision that is being started."""

    def __init__(self, cluster: Cluster, world: World, setup: Setup, workload: Workload) -> None:
        self._cluster = cluster
        self._world = world
        self._settings = setup.cluster
        self._workload = workload

    async def until_serving(self) -> Manifest:
        """Return a pod that answers. Raises DeployFailed."""
        uid, revision = self._workload.uid, self._workload.revision
        clock = asyncio.get_running_loop()
        begin = clock.time()
        running_since: float | None = None
        while True:
            if serving := self._world.serving(uid, revision):
                return serving[0]
            pod = next(iter(self._world.pods(uid, revision)), None)
            if pod is None or not running_container(pod):
                running_since = None
                left = begin + self._settings.pull_seconds - clock.time()
            else:
                running_since = running_since or clock.time()
                left = running_since + self._workload.start_timeout + _MARGIN_SECONDS - clock.time()
            trouble = self._trouble(pod, clock.time() - begin)
            if trouble is None and left <= 0:
                late = failures.too_late(self._workload)
                trouble = late if running_since else failures.never_started(self._settings)
            if trouble is not None:
                raise await self._failed(trouble, pod)
            await self._world.news(uid, min(left, _LOOK_SECONDS))

    def _trouble(self, pod: Manifest | None, waited: float) -> Trouble | None:
        if pod is not None:
            return failures.trouble_of(pod, self._workload, self._settings, waited)
        deployment = self._world.deployments(self._workload.uid).get(self._workload.revision)
        refused = condition(deployment or {}, "ReplicaFailure")
        if refused.get("status") != "True":
            return None
        return failures.creation_trouble(refused.get("message", ""))

    async def _failed(self, trouble: Trouble, pod: Manifest | None) -> DeployFailed:
        if not trouble.logs or pod is None:
            return failures.failed(trouble)
        container = trouble.container or CONTAINER
        name = pod["metadata"]["name"]
        lines = await self._lines(name, container, previous=trouble.logs == "previous")
        failure = failures.failed(trouble, lines)
        if container == INSTALLER:
            failure.reason = "INSTALL_FAILED"
            failure.message = "its requirements could not be installed: " + " ".join(lines[-3:])
            failure.fix = "see the log; the cluster has to reach the package index"
        return failure

    async def _lines(self, pod: str, container: str, *, previous: bool) -> list[str]:
        """The container's last lines; none where there is no log any more."""
        lines: list[str] = []
        try:
            async with asyncio.timeout(_LOG_SECONDS):
                logs = self._cluster.logs(
                    self._settings.namespace, pod, container, tail=LOG_TAIL + 1, previous=previous
                )
                lines += [line.rstrip("\n") async for line in logs]
        except (NotFound, Invalid, TimeoutError):
            return lines
        except KubeError as error:
            return [*lines, f"(the log cannot be read: {error})"]
        return lines
