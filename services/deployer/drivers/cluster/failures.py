"""Why a function does not start: what its pods and the API server say, in Mayfly's words; pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from libs.kube.containers import cannot_be_made
from libs.kube.errors import Forbidden, Invalid, KubeError, NotFound, QuotaExceeded
from libs.kube.kinds import Manifest
from services.deployer.drivers.base import DeployFailed, Workload
from services.deployer.drivers.cluster import container, pods
from services.deployer.drivers.cluster.settings import ClusterSettings

FAILURE_PREFIX = "mayfly-failure: "
LOG_TAIL = 50
_PULL = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ImageInspectError"})
_PULL_GRACE_SECONDS = 10.0
_MARGIN, _SCRIPT_MARGIN = 3.0, 10.0  # seconds
_LAST_SIGNAL = 64
_GONE = re.compile(
    r"not found|manifest unknown|NotFound|name unknown|repository does not exist", re.I
)
# What admission says for good; all else (conflicts, time-outs) passes. "status unknown": nobody has
# counted a new quota yet.
_REFUSED = re.compile(r"forbidden|is invalid|denied the request|violates", re.I)
_NOT_YET = re.compile(r"status unknown for quota|error looking up service account", re.I)
_DENIED = re.compile(r"unauthorized|denied|forbidden|401|403|no basic auth", re.I)
_OWN_REASONS = frozenset(
    {
        "HANDLER_IMPORT_FAILED", "HANDLER_MISSING", "SCRIPT_NEVER_LISTENED",
        "SCRIPT_LISTENS_ELSEWHERE", "SCRIPT_EXITED", "INSTALL_FAILED", "INSTANCE_START_FAILED",
        "PACKAGE_NOT_FOUND", "INDEX_UNREACHABLE",
    }
)  # fmt: skip
_FIXES = {
    "HANDLER_IMPORT_FAILED": "make the module importable: the traceback names the line",
    "HANDLER_MISSING": "define handler(event, ctx) at the top level",
}


@dataclass(frozen=True)
class Trouble:
    """Why a pod will not become ready. logs: which of the container's say more.

    exit_code: negative is the signal that ended it.
    """

    reason: str
    message: str
    fix: str
    exit_code: int | None = None
    container: str = ""
    logs: Literal["", "current", "previous"] = ""


def trouble_of(
    pod: Manifest, workload: Workload, settings: ClusterSettings, waited: float
) -> Trouble | None:
    """Return what is wrong with a pod of a starting revision; None: it may still become ready.

    waited: seconds since the deploy began.
    """
    if pods.is_ready(pod):
        return None
    scheduled = pods.condition(pod, "PodScheduled")
    if scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable":
        if waited < settings.unschedulable_seconds:
            return None
        return Trouble(
            "UNSCHEDULABLE",
            f"no node has room: {scheduled.get('message', '')}",
            "ask for less memory, end other functions, or add a node",
        )
    status = pod.get("status", {})
    if status.get("phase") == "Failed" and status.get("reason"):
        return Trouble(
            "INSTANCE_START_FAILED",
            f"its pod failed: {status['reason']}: {status.get('message', '')}",
            "see the node's state; ask for more memory if it was evicted",
        )
    for name in pods.container_names(pod):
        if name == "queue-proxy":
            continue
        found = _container_trouble(pod, name, workload, waited)
        if found is not None:
            return found
    return None


def _container_trouble(
    pod: Manifest, name: str, workload: Workload, waited: float
) -> Trouble | None:
    waiting: dict[str, Any] = pods.container_status(pod, name).get("state", {}).get("waiting") or {}
    reason, message = waiting.get("reason", ""), waiting.get("message", "")
    if reason in _PULL:
        return _pull_trouble(message, waited)
    if cannot_be_made(reason, message):
        return Trouble(
            "INSTANCE_START_FAILED",
            f"its container cannot be started: {reason}: {message}",
            "the image needs a numeric non-root user, and a program that this user may run",
        )
    end = pods.last_end(pod, name)
    if not end:
        return None
    inits: list[dict[str, Any]] = pod["spec"].get("initContainers") or []
    is_init = name in {each["name"] for each in inits}
    code = exit_code(end)
    if is_init and code == 0:
        return None
    running = "terminated" in pods.container_status(pod, name).get("state", {})
    return _ended(workload, name, end, code, "current" if running else "previous", is_init)


def exit_code(end: Mapping[str, Any]) -> int:
    """How a process ended; minus the signal where it was one, which runtimes tell as 128 + n."""
    code: int = end.get("exitCode", 0)
    return 128 - code if 128 < code <= 128 + _LAST_SIGNAL else code


def pull_fix(message: str) -> str:
    """What to do about an image that a registry refuses; "" where it did not say so."""
    if _GONE.search(message):
        return "build the function again, or give an image that exists"
    if _DENIED.search(message):
        return "give the cluster credentials for the registry: MAYFLY_IMAGE_PULL_SECRETS"
    return ""


def _pull_trouble(message: str, waited: float) -> Trouble | None:
    fix = pull_fix(message)
    if not fix and waited < _PULL_GRACE_SECONDS:
        return None  # a registry that does not answer may answer the next time
    return Trouble(
        "IMAGE_PULL_FAILED",
        f"its image cannot be pulled: {message}",
        fix or "see that the nodes reach the registry, and trust its certificate",
    )


def _ended(
    workload: Workload,
    name: str,
    end: dict[str, Any],
    code: int,
    logs: Literal["current", "previous"],
    is_init: bool,
) -> Trouble:
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    if end.get("reason") == "OOMKilled":
        return Trouble(
            "INSTANCE_START_FAILED",
            f"it needed more than its {workload.limits.memory_bytes >> 20} MiB of memory to start",
            "set resources.memory_bytes higher",
            code, name, logs,
        )  # fmt: skip
    if is_init:
        return Trouble(
            "INSTANCE_START_FAILED", f"its preparation ended: {how}", "see its logs",
            code, name, logs,
        )  # fmt: skip
    if workload.kind in ("script", "image"):
        what = "the script" if workload.kind == "script" else "the container"
        return Trouble(
            "SCRIPT_EXITED",
            f"{what} ended before it listened: {how}",
            f"keep serving HTTP on port {workload.port}; its last lines say more",
            code, name, logs,
        )  # fmt: skip
    return Trouble(
        "INSTANCE_START_FAILED", f"it ended while it started: {how}", "see its logs",
        code, name, logs,
    )  # fmt: skip


def patience(workload: Workload) -> float:
    """Seconds that a container may run until it is `too_late`.

    The first process of a script's knows better why (runtimes/python/script.py), but its clock
    starts when its Python has, which takes its time on a busy node.
    """
    return workload.start_timeout + (_SCRIPT_MARGIN if workload.kind == "script" else _MARGIN)


def too_late(workload: Workload, container_name: str = container.CONTAINER) -> Trouble:
    """What it is when nothing is wrong with the pod but that it is not ready in time."""
    seconds = f"{workload.start_timeout:g} s"
    if container.is_handler(workload):
        return Trouble(
            "HANDLER_IMPORT_FAILED",
            f"importing the handler took longer than {seconds}",
            "do slow work in the handler, not while its module is imported",
            None, container_name, "current",
        )  # fmt: skip
    if workload.health:
        return Trouble(
            "HEALTH_CHECK_FAILED",
            f"{workload.health} did not answer 2xx on port {workload.port} within {seconds}",
            "answer 2xx on the health path, or leave `health` unset",
            None, container_name, "current",
        )  # fmt: skip
    what = "the script" if workload.kind == "script" else "the container"
    return Trouble(
        "SCRIPT_NEVER_LISTENED",
        f"{what} did not listen on port {workload.port} within {seconds}",
        f"listen on 0.0.0.0, on port {workload.port} or the one that PORT names",
        None, container_name, "current",
    )  # fmt: skip


def never_started(settings: ClusterSettings) -> Trouble:
    """What it is when there was no container at all in time, and nobody says why."""
    return Trouble(
        "INSTANCE_START_FAILED",
        f"no container was started within {settings.pull_seconds:g} s",
        "see the events of the functions' namespace: a node may be slow to pull the image",
    )


def creation_trouble(message: str) -> Trouble | None:
    """Why a controller cannot create pods, by its message; None: its next try may succeed."""
    if "exceeded quota" in message:
        return Trouble("CLUSTER_QUOTA_EXCEEDED", message, _QUOTA_FIX)
    if not _REFUSED.search(message) or _NOT_YET.search(message):
        return None
    return Trouble(
        "INSTANCE_START_FAILED",
        f"the cluster refuses its pod: {message}",
        "see the admission rules of the functions' namespace",
    )


_QUOTA_FIX = "end other functions, ask for less, or raise the quota of the functions' namespace"


def failed(trouble: Trouble, lines: Sequence[str] = ()) -> DeployFailed:
    """A trouble with its last log lines; what the container says of itself counts most."""
    shown = [line for line in lines if not line.startswith(FAILURE_PREFIX)][-LOG_TAIL:]
    said = _said(lines) if trouble.logs else None
    if said is None:
        return DeployFailed(
            trouble.reason, trouble.message[:2000], trouble.fix, shown, trouble.exit_code
        )
    reason, message, fix = said
    return DeployFailed(
        reason, message[:2000], fix or _FIXES.get(reason, trouble.fix), shown, trouble.exit_code
    )


def _said(lines: Iterable[str]) -> tuple[str, str, str] | None:
    for line in lines:
        if not line.startswith(FAILURE_PREFIX):
            continue
        try:
            value: object = json.loads(line.removeprefix(FAILURE_PREFIX))
        except ValueError:
            continue
        if isinstance(value, dict):
            values = cast("dict[str, object]", value)
            reason = str(values.get("reason", ""))
            if reason in _OWN_REASONS:
                return reason, str(values.get("message", "")), str(values.get("fix", ""))
    return None


def refused(error: KubeError) -> DeployFailed | None:
    """What the API server refuses for good; None: it may take it another time."""
    match error:
        case QuotaExceeded(message=message):
            return DeployFailed("CLUSTER_QUOTA_EXCEEDED", message, _QUOTA_FIX)
        case Forbidden(verb=verb, resource=resource, message=message) if verb:
            return DeployFailed(
                "CLUSTER_FORBIDDEN",
                f"Mayfly's service account may not {verb} {resource}: {message}",
                f"give its Role in the functions' namespace the verb {verb} on {resource}",
            )
        case Forbidden(message=message):
            return DeployFailed(
                "CLUSTER_FORBIDDEN",
                f"the cluster's admission rules refuse it: {message}",
                "see the admission rules of the functions' namespace",
            )
        case Invalid(message=message):
            return DeployFailed(
                "INSTANCE_START_FAILED",
                f"the cluster does not take it: {message}",
                "change what the message names; its versions must fit Mayfly's",
            )
        case NotFound():
            return DeployFailed(
                "INSTANCE_START_FAILED",
                f"the cluster lacks what functions need: {error}",
                "see that the functions' namespace is there, and the driver's API installed",
            )
        case _:
            return None


def is_image_gone(pod: Manifest) -> bool:
    """Whether a pod cannot start because its image does not exist any more."""
    for name in pods.container_names(pod):
        state: dict[str, Any] = pods.container_status(pod, name).get("state") or {}
        waiting: dict[str, Any] = state.get("waiting") or {}
        if waiting.get("reason") in _PULL and _GONE.search(waiting.get("message", "")):
            return True
    return False
