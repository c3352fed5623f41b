"""Which instances run and how they ended, each told once."""

from __future__ import annotations

from collections.abc import Callable

from libs.kube.kinds import Manifest
from services.deployer.drivers.base import InstanceStarted, InstanceStopped, Notification
from services.deployer.drivers.cluster import container, failures, names, pods


class Instances:
    """Told of pods as they change. A container that ends is an instance that ended, whether its
    pod starts it again or not: requests may have reached it before the kubelet said it is ready.
    """

    def __init__(self, tell: Callable[[Notification], None]) -> None:
        self._tell = tell
        self._ready: set[str] = set()
        self._ends: dict[str, str] = {}

    def know(self, pod: Manifest) -> None:
        """A pod that was there before: what ended then was somebody else's to tell."""
        self._ends[pod["metadata"]["name"]] = _end_of(pod)
        self.take(pod)

    def take(self, pod: Manifest) -> None:
        """A pod as it is now."""
        name = pod["metadata"]["name"]
        end = _end_of(pod)
        if pods.is_ending(pod):
            self._lost(pod, deleted="deletionTimestamp" in pod["metadata"])
        elif end != self._ends.get(name, ""):
            self._ready.discard(name)
            self._stopped(pod, deleted=False)
        elif pods.is_ready(pod) and name not in self._ready:
            self._ready.add(name)
            uid, revision = names.uid_of(pod), names.revision_of(pod)
            self._tell(InstanceStarted(uid, name, revision, pods.ready_seconds(pod)))
        self._ends[name] = end

    def gone(self, pod: Manifest) -> None:
        """There is no such pod any more."""
        self._lost(pod, deleted=True)
        self._ends.pop(pod["metadata"]["name"], None)

    def _lost(self, pod: Manifest, *, deleted: bool) -> None:
        name = pod["metadata"]["name"]
        if name in self._ready:
            self._ready.discard(name)
            self._stopped(pod, deleted=deleted)

    def _stopped(self, pod: Manifest, *, deleted: bool) -> None:
        name = pod["metadata"]["name"]
        reason, code = ended(pod, deleted=deleted)
        self._tell(InstanceStopped(names.uid_of(pod), name, reason, code))


def ended(pod: Manifest, *, deleted: bool) -> tuple[str, int | None]:
    """How an instance ended: a reason of `InstanceStopped`, and its exit code where it has one."""
    end = pods.last_end(pod, container.CONTAINER)
    if end.get("reason") == "OOMKilled":
        return "memory", -9
    if deleted:
        return "idle", None
    if "exitCode" not in end:
        return "killed", None
    code = failures.exit_code(end)
    return ("killed" if code < 0 else "exited"), code


def _end_of(pod: Manifest) -> str:
    """Which end of its process was the last: another one has another id or time."""
    end = pods.last_end(pod, container.CONTAINER)
    return f"{end.get('containerID', '')} {end.get('finishedAt', '')}" if end else ""
