"""Runs functions as Knative Services. Knative scales them, also to zero and back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing

import structlog

from libs.kube.errors import KubeError
from libs.kube.kinds import (
    DEPLOYMENT,
    KNATIVE_CONFIGURATION,
    KNATIVE_REVISION,
    KNATIVE_SERVICE,
    REPLICA_SET,
    SECRET,
    Kind,
    Manifest,
)
from services.deployer.drivers import base
from services.deployer.drivers.cluster import container, failures, names, pods, residue
from services.deployer.drivers.cluster.failures import Trouble
from services.deployer.drivers.cluster.follower import Follower
from services.deployer.drivers.cluster.settings import ClusterSettings
from services.deployer.drivers.cluster.world import World, deploying, translated
from services.deployer.drivers.knative import manifests, status

log = structlog.get_logger()

_KINDS = (KNATIVE_SERVICE, KNATIVE_REVISION, SECRET)
_MADE = (KNATIVE_CONFIGURATION, DEPLOYMENT, REPLICA_SET)
"""By Knative and Kubernetes: what makes revisions and pods, and would for a while go on to."""
_ROUTE_SECONDS = 60.0
_SEEN_SECONDS = 10.0
# A Service that somebody deleted leaves its revisions to be collected; until then names are taken.
_TAKEN_SECONDS = 15.0


class KnativeDriver:
    """Implements `base.Driver`. Any number of replicas may drive the same namespace.

    ingress: "host:port" of Knative's ingress for requests from inside the cluster.
    """

    reserves = False
    shared = True

    def __init__(self, settings: ClusterSettings, *, ingress: str) -> None:
        self._settings = settings
        self._ingress = ingress
        self._world = World(settings, _KINDS, _MADE)
        self._known: dict[str, base.Workload] = {}

    async def start(self) -> None:
        """Begin to look at the cluster; that it does not answer yet is no error."""
        await self._world.start()

    async def close(self) -> None:
        """Let go of the cluster; functions go on."""
        await self._world.close()

    async def reserve(self, uid: str, kind: str, address_hint: str | None) -> base.Endpoint:
        """Where it will be reached; nothing waits there before the deploy."""
        return self._endpoint(uid)

    async def deploy(
        self, workload: base.Workload, early: base.Early | None = None
    ) -> base.Deployed:
        """Apply Secret and Service, and return when requests go to the new revision."""
        if not workload.image:
            raise base.DeployFailed(
                "SOURCE_UNSUPPORTED",
                "Knative runs functions from images, and this one was built to none",
                "set MAYFLY_BUILD_BACKENDS=layers,kaniko, then update the function",
            )
        await self._world.ready()
        name = names.function_name(workload.uid)
        wanted = manifests.desired(workload, self._settings)
        before = None
        if workload.revision > 1:
            async with deploying():
                before = await self._world.cluster.get(
                    KNATIVE_SERVICE, self._settings.namespace, name
                )
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with deploying():
                await self._world.apply(wanted)
            pod = await self._answers(workload, status.template_name(wanted[-1]), early)
        except base.DeployFailed as failure:
            await self._set_back(workload, before, failure)
            raise
        self._known[workload.uid] = workload
        return base.Deployed(
            instance=pod["metadata"]["name"] if pod else name,
            memory_bytes=0,
            seconds=loop.time() - began,
            endpoint=self._endpoint(workload.uid),
            detail=_detail(workload, pod),
        )

    async def _answers(
        self, workload: base.Workload, revision: str, early: base.Early | None
    ) -> Manifest | None:
        """Wait until requests go to a revision; return one of its pods. Raises DeployFailed."""
        world, settings, uid = self._world, self._settings, workload.uid
        watch = _Start(workload, settings)
        tell = [early] if early is not None else []

        def look() -> tuple[Manifest | None, Trouble | None] | None:
            mine = [
                pod
                for pod in world.pods(uid, workload.revision)
                if pod["metadata"]["labels"].get("serving.knative.dev/revision") == revision
            ]
            service = world.one(KNATIVE_SERVICE, names.function_name(uid))
            if status.routes_to(service, revision):
                return next(filter(pods.is_ready, mine), None), None
            trouble = status.revision_trouble(world.one(KNATIVE_REVISION, revision))
            if trouble is None and watch.waited > _TAKEN_SECONDS:
                trouble = status.service_trouble(service)
            if trouble is not None:
                return None, trouble
            there = [pod for pod in mine if "deletionTimestamp" not in pod["metadata"]]
            judged = watch.judged(there)
            if watch.was_ready and tell:
                tell.pop()(self._endpoint(uid))
            return judged

        seconds = settings.pull_seconds + workload.start_timeout + _ROUTE_SECONDS
        found = await world.until(uid, look, seconds)
        if found is None:
            raise base.DriverUnavailable("Knative does not route to the revision")
        pod, trouble = found
        if trouble is not None:
            raise await world.failed(pod, trouble)
        return pod

    async def _set_back(
        self, workload: base.Workload, before: Manifest | None, failure: base.DeployFailed
    ) -> None:
        """Have the Service ask again for what serves, and remove what failed."""
        uid = workload.uid
        failed = status.template_name(manifests.desired(workload, self._settings)[-1])
        old = self._old(uid, failed, before)
        if old is None:
            return  # nothing served; `fail` or `remove` comes next
        name = status.template_name(old[-1])
        try:
            await self._world.apply(old)
            # Before Knative has seen it, it would make the failed revision again.
            await self._world.until(uid, lambda: self._is_latest(uid, name), _SEEN_SECONDS)
            await self._delete_others(uid, keep=name, only=workload.revision)
        except KubeError as error:
            log.warning("not_set_back", uid=uid, after=failure.reason, error=str(error))

    def _is_latest(self, uid: str, revision: str) -> bool | None:
        service = self._world.one(KNATIVE_SERVICE, names.function_name(uid))
        return status.is_latest(service, revision) or None

    def _old(self, uid: str, failed: str, before: Manifest | None) -> list[Manifest] | None:
        if before is None:
            return None
        known = self._known.get(uid)
        if known is not None:
            wanted = manifests.desired(known, self._settings)
            if status.template_name(wanted[-1]) in status.routed(before):
                return wanted
        if status.template_name(before) in ("", failed):
            return None
        metadata = before["metadata"]
        annotations: dict[str, str] = metadata.get("annotations", {})
        kept = {key: value for key, value in annotations.items() if key == names.DIGEST}
        return [
            {
                "apiVersion": before["apiVersion"],
                "kind": before["kind"],
                "metadata": {
                    "name": metadata["name"],
                    "namespace": metadata["namespace"],
                    "labels": metadata.get("labels", {}),
                    "annotations": kept,
                },
                "spec": {"template": before["spec"]["template"]},
            }
        ]

    async def restore(
        self, workloads: Sequence[base.Workload], endpoints: Mapping[str, base.Endpoint]
    ) -> None:
        """Nothing runs here; remembered is what is to be there, for who follows."""
        self._known.update({workload.uid: workload for workload in workloads})

    async def settle(self, uid: str, revision: int) -> None:
        """Delete what only older revisions have."""
        with translated():
            service = await self._world.cluster.get(
                KNATIVE_SERVICE, self._settings.namespace, names.function_name(uid)
            )
            if service is None:
                return
            await self._delete_others(uid, keep=status.template_name(service), up_to=revision)

    async def _delete_others(
        self, uid: str, keep: str, *, up_to: int | None = None, only: int | None = None
    ) -> None:
        """Delete revisions but `keep`, and Secrets of revisions older than `up_to` or of `only`."""
        chosen = names.uids_selector(self._settings, [uid])
        cluster, namespace = self._world.cluster, self._settings.namespace
        doomed: list[tuple[Kind, Manifest]] = []
        for each in await cluster.list(KNATIVE_REVISION, namespace, chosen):
            number = names.revision_of(each)
            old = number == only if up_to is None else number <= up_to
            if old and each["metadata"]["name"] != keep:
                doomed.append((KNATIVE_REVISION, each))
        for each in await cluster.list(SECRET, namespace, chosen):
            number = names.revision_of(each)
            if number == only if up_to is None else number < up_to:
                doomed.append((SECRET, each))
        await self._world.delete(doomed)

    async def wake(self, uid: str) -> None:
        """Nothing to do: a request to the ingress wakes it."""

    async def sleep(self, uid: str) -> None:
        """Nothing to do: Knative sees by itself what is unused."""

    async def touch(self, uid: str, in_flight: int) -> None:
        """Nothing to do: Knative counts requests itself."""

    async def fail(self, uid: str, status: int, body: bytes) -> None:
        """Remove all of it: who waits, waits at the gateway."""
        removed = await self.remove([uid])
        if left := base.still_there(removed[uid]):
            raise base.DriverUnavailable(left)

    async def remove(self, uids: Sequence[str]) -> dict[str, list[base.Resource]]:
        for uid in uids:
            self._known.pop(uid, None)
        return await self._world.remove(uids)

    async def notifications(self, wanted: base.Wanted) -> AsyncGenerator[base.Notification]:
        """What happens; what somebody else changes is put right meanwhile."""
        active: dict[str, bool] = {}

        def on_pods(uid: str) -> Iterable[base.Notification]:
            there = self._world.pods(uid)
            if any(pods.is_ready(pod) for pod in there):
                now = True
            elif any(not pods.is_ending(pod) for pod in there):
                return []  # about to be
            else:
                now = False
            if active.get(uid) == now:
                return []
            active[uid] = now
            return [base.BecameActive(uid) if now else base.BecameIdle(uid)]

        def desired(workload: base.Workload) -> list[Manifest]:
            return manifests.desired(workload, self._settings) if workload.image else []

        follower = Follower(self._world, wanted, desired, on_pods)
        async with aclosing(follower.notifications(list(self._known))) as notifications:
            async for notification in notifications:
                yield notification

    async def list_resources(self) -> list[base.Resource]:
        return await residue.list_resources(self._world)

    async def remove_resource(self, resource: base.Resource) -> None:
        await residue.remove_resource(self._world, resource)

    def _endpoint(self, uid: str) -> base.Endpoint:
        return base.Endpoint(f"tcp:{self._ingress}", host=names.host_name(uid, self._settings))


class _Start:
    """Judges the pods of a revision that is starting, by how long it has taken."""

    def __init__(self, workload: base.Workload, settings: ClusterSettings) -> None:
        self._workload = workload
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._running_since: float | None = None
        self.was_ready = False

    @property
    def waited(self) -> float:
        """Seconds since the start."""
        return self._loop.time() - self._began

    def judged(self, mine: Sequence[Manifest]) -> tuple[Manifest | None, Trouble | None] | None:
        """A pod with its trouble; None: wait on."""
        now = self._loop.time()
        waited = self.waited
        for pod in mine:
            trouble = failures.trouble_of(pod, self._workload, self._settings, waited)
            if trouble is not None:
                return pod, trouble
        self.was_ready |= any(pods.is_ready(pod) for pod in mine)
        if self.was_ready:
            return None  # the rest is Knative's routing
        started = [pod for pod in mine if pods.has_started(pod, container.CONTAINER)]
        if started and self._running_since is None:
            self._running_since = now
        if self._running_since is None:
            late = waited > self._settings.pull_seconds
            return (None, failures.never_started(self._settings)) if late else None
        if started and now - self._running_since > failures.patience(self._workload):
            return started[0], failures.too_late(self._workload)
        return None


def _detail(workload: base.Workload, pod: Manifest | None) -> str:
    where = pods.node_of(pod) if pod else ""
    image = workload.image.rpartition("@sha256:")[2][:12]
    return ", ".join(part for part in ("knative", image, where) if part)
