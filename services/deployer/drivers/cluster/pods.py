"""What a pod says about itself; pure."""

from __future__ import annotations

from datetime import datetime
from typing import Any, cast

from libs.kube.kinds import Manifest


def condition(manifest: Manifest, type_: str) -> dict[str, Any]:
    """One of an object's conditions; empty where it has none of this type."""
    conditions = cast("list[dict[str, Any]]", manifest.get("status", {}).get("conditions") or [])
    empty: dict[str, Any] = {}
    return next((each for each in conditions if each.get("type") == type_), empty)


def is_ready(pod: Manifest) -> bool:
    """Whether requests may be sent to it."""
    return condition(pod, "Ready").get("status") == "True" and not is_ending(pod)


def is_ending(pod: Manifest) -> bool:
    """Whether it is being deleted, or has ended by itself."""
    phase = pod.get("status", {}).get("phase")
    return is_told_to_end(pod) or phase in ("Succeeded", "Failed")


def is_told_to_end(pod: Manifest) -> bool:
    """Whether it is being deleted; it runs until its node says otherwise."""
    return "deletionTimestamp" in pod["metadata"]


def ready_seconds(pod: Manifest) -> float:
    """From its creation until it was ready."""
    since = condition(pod, "Ready").get("lastTransitionTime")
    if since is None:
        return 0.0
    return (parse_time(since) - parse_time(pod["metadata"]["creationTimestamp"])).total_seconds()


def container_status(pod: Manifest, container: str) -> dict[str, Any]:
    """The status of a container, an init container too; empty before it has one."""
    status = pod.get("status", {})
    all_of_them = cast(
        "list[dict[str, Any]]",
        [*(status.get("containerStatuses") or []), *(status.get("initContainerStatuses") or [])],
    )
    empty: dict[str, Any] = {}
    return next((each for each in all_of_them if each["name"] == container), empty)


def container_names(pod: Manifest) -> list[str]:
    """Init containers first, then the others."""
    spec = pod["spec"]
    both: list[dict[str, Any]] = [*(spec.get("initContainers") or []), *spec["containers"]]
    return [each["name"] for each in both]


def restarts(pod: Manifest, container: str) -> int:
    return container_status(pod, container).get("restartCount", 0)


def has_started(pod: Manifest, container: str) -> bool:
    """Whether it is running or was, so that it has logs."""
    state = container_status(pod, container).get("state", {})
    return "running" in state or "terminated" in state or restarts(pod, container) > 0


def started_at(pod: Manifest, container: str) -> datetime | None:
    """When its process that runs now began."""
    text = container_status(pod, container).get("state", {}).get("running", {}).get("startedAt")
    return parse_time(text) if text else None


def last_end(pod: Manifest, container: str) -> dict[str, Any]:
    """How its process ended, this one or the one before; empty where none did."""
    status = container_status(pod, container)
    now = status.get("state", {}).get("terminated")
    return now or status.get("lastState", {}).get("terminated") or {}


def node_of(pod: Manifest) -> str:
    return pod["spec"].get("nodeName", "")


def parse_time(text: str) -> datetime:
    """Read RFC 3339 with any number of digits behind the second; aware."""
    whole, dot, rest = text.removesuffix("Z").partition(".")
    return datetime.fromisoformat(f"{whole}{dot}{rest[:6].ljust(6, '0') if dot else ''}+00:00")
