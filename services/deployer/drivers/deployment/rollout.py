"""Waits until a new revision answers, or says why it will not."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from libs.kube.kinds import Manifest
from services.deployer.drivers.base import DeployFailed, Workload
from services.deployer.drivers.cluster import failures
from services.deployer.drivers.cluster.failures import Trouble
from services.deployer.drivers.cluster.pods import condition
from services.deployer.drivers.cluster.world import World
from services.deployer.drivers.deployment.pods import running_container
from services.deployer.drivers.deployment.serving import Serving
from services.deployer.drivers.deployment.shape import INSTALLER, Setup

_SAID = frozenset({"SCRIPT_NEVER_LISTENED", "SCRIPT_LISTENS_ELSEWHERE"})
"""What a container says of itself without having written anything else."""
_LOOK_SECONDS = 5.0
"""What only time makes a failure is looked at this often."""


class Rollout:
    """One revision that is being started."""

    def __init__(self, world: World, serving: Serving, setup: Setup, workload: Workload) -> None:
        self._world = world
        self._serving = serving
        self._settings = setup.cluster
        self._workload = workload

    async def until_serving(self) -> Manifest:
        """Return a pod that answers. Raises DeployFailed."""
        uid, revision = self._workload.uid, self._workload.revision
        clock = asyncio.get_running_loop()
        begin = clock.time()
        running_since: float | None = None
        while True:
            if serving := self._serving.instances(uid, revision):
                return serving[0]
            pod = next(iter(self._world.pods(uid, revision)), None)
            if pod is None or not running_container(pod):
                running_since = None
                left = begin + self._settings.pull_seconds - clock.time()
            else:
                running_since = running_since or clock.time()
                left = running_since + failures.patience(self._workload) - clock.time()
            trouble = self._trouble(pod, clock.time() - begin)
            if trouble is None and left <= 0:
                late = failures.too_late(self._workload)
                trouble = late if running_since else failures.never_started(self._settings)
            if trouble is not None:
                raise await self._failed(trouble, pod)
            await self._serving.news(uid, min(left, _LOOK_SECONDS))

    def _trouble(self, pod: Manifest | None, waited: float) -> Trouble | None:
        if pod is not None:
            return failures.trouble_of(pod, self._workload, self._settings, waited)
        deployment = self._serving.deployments(self._workload.uid).get(self._workload.revision)
        refused = condition(deployment or {}, "ReplicaFailure")
        if refused.get("status") != "True":
            return None
        return failures.creation_trouble(refused.get("message", ""))

    async def _failed(self, trouble: Trouble, pod: Manifest | None) -> DeployFailed:
        failure = await self._world.failed(pod, trouble)
        if trouble.exit_code is not None and not (failure.log_tail or failure.reason in _SAID):
            # It is started again at once, and what it wrote is then the log of the one before.
            before = replace(trouble, logs="previous")
            failure = await self._world.failed(pod, before)
        if trouble.container == INSTALLER:
            failure.reason = "INSTALL_FAILED"
            last = " ".join(failure.log_tail[-3:])
            failure.message = f"its requirements could not be installed: {last}"
            failure.fix = "see the log; the cluster has to reach the package index"
        return failure
