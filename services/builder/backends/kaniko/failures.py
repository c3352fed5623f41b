"""What became of a Kaniko pod, by its status and its output. Nothing here acts.

The texts are those of Kaniko 1.24, of go-containerregistry and of the AWS SDK for Go; the fields
those of https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, TypeAlias

from libs.kube.containers import cannot_be_made
from libs.kube.errors import Forbidden, Invalid, KubeError, NotFound, QuotaExceeded, Unavailable
from services.builder.backends.kaniko.output import Output
from services.builder.failures import BuildFailed

Manifest: TypeAlias = dict[str, Any]

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_EXIT = re.compile(r"exit status (\d+)")
_LINE = re.compile(r"on line (\d+)")
_NOT_ADDED = re.compile(r"failed to get fileinfo for /kaniko/buildcontext/(\S+?):")
_REFUSED = re.compile(
    r"UNAUTHORIZED|DENIED|unauthorized|denied|\b40[13]\b|TAG_INVALID|NAME_INVALID|UNSUPPORTED"
    r"|immutable|\b405\b"
)
_NO_ANSWER = re.compile(
    r"dial tcp|connection (refused|reset)|no such host|i/o timeout|TLS handshake timeout"
    r"|context deadline exceeded|Client\.Timeout|\bEOF\b|network is unreachable|no route to host"
    r"|broken pipe|TOOMANYREQUESTS|\b(429|50[0234])\b|StatusCode: 0"
)
_NO_IMAGE = re.compile(
    r"MANIFEST_UNKNOWN|NAME_UNKNOWN|unable to complete operation after"
    r"|error retrieving image|failed to (get|retrieve) image|retrieving image"
)
_PULL_WAITS = ("ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull")
_PULL_FOR_GOOD = re.compile(
    r"not found|denied|unauthorized|invalid|authorization failed|forbidden|40[134]", re.IGNORECASE
)
_TAKEN_AWAY = ("Evicted", "Preempting", "Shutdown", "NodeShutdown", "Terminated", "NodeLost")
_KILLED = (137, 143)
# What the executor may take to come up on a busy node.
_STARTS_SECONDS = 5.0


@dataclass(frozen=True)
class Pushed:
    """It ended well."""

    digest: str


@dataclass(frozen=True)
class TakenAway:
    """It was evicted, deleted or killed from outside: the build is not to blame."""

    why: str


@dataclass(frozen=True)
class NoRoom:
    """No node takes it; that may change."""

    why: str


@dataclass(frozen=True)
class Passing:
    """It failed for want of something outside that may come back: a registry or the bucket."""

    failure: BuildFailed


@dataclass(frozen=True)
class Failed:
    """It failed, and would again."""

    failure: BuildFailed


Outcome: TypeAlias = Pushed | TakenAway | NoRoom | Passing | Failed


def outcome(pod: Manifest | None, output: Output, registry: str) -> Outcome | None:
    """Return what became of a pod, None while that is open.

    `pod` is None when it is gone; `output` has all that it printed; `registry` is "host:port" of
    where the image goes.
    """
    if pod is None:
        return TakenAway("its pod was deleted")
    status: Manifest = pod.get("status", {})
    phase = status.get("phase", "Pending")
    container = _container(status)
    if phase == "Succeeded":
        return _succeeded(container)
    if "deletionTimestamp" in pod.get("metadata", {}):
        return TakenAway("its pod was deleted")
    if phase == "Failed":
        return _failed(status, container, output, registry)
    if phase == "Pending":
        return _pending(status, container)
    return None


def is_started(pod: Manifest | None) -> bool:
    """Whether its container runs, or has run."""
    state: Manifest = _container(pod.get("status", {})).get("state", {}) if pod else {}
    return "running" in state or "terminated" in state


def last_words(pod: Manifest) -> str:
    """Return the end of what a pod printed, as its status has it."""
    state: Manifest = _container(pod.get("status", {})).get("state", {})
    return str(state.get("terminated", {}).get("message", ""))


def _container(status: Manifest) -> Manifest:
    found: list[Manifest] = status.get("containerStatuses") or [{}]
    return found[0]


def _succeeded(container: Manifest) -> Outcome:
    message = str(container.get("state", {}).get("terminated", {}).get("message", ""))
    digest = _DIGEST.search(message)
    if digest is None:
        return Failed(
            BuildFailed(
                "INTERNAL",
                f"the build's pod ended well without the image's digest: {message[-200:]!r}",
                "check that MAYFLY_KANIKO_IMAGE is a Kaniko executor",
            )
        )
    return Pushed(digest[0])


def _failed(status: Manifest, container: Manifest, output: Output, registry: str) -> Outcome:
    reason, message = str(status.get("reason", "")), str(status.get("message", ""))
    if reason == "DeadlineExceeded":
        return Failed(timeout())
    terminated: Manifest = container.get("state", {}).get("terminated", {})
    code = int(terminated.get("exitCode", 0))
    if terminated.get("reason") == "OOMKilled":
        return Failed(
            BuildFailed(
                "BUILD_OUT_OF_MEMORY",
                "the build needed more memory than its pod has",
                "require or compile less at once, or ask the operator to raise "
                "MAYFLY_BUILD_POD_MEMORY",
                exit_code=code,
            )
        )
    if reason in _TAKEN_AWAY or _is_disrupted(status):
        return TakenAway(f"its pod was evicted ({message or reason})")
    if not output.error and code in _KILLED:
        return TakenAway(f"its pod was killed (exit code {code})")
    return _told(output, code, registry)


def _is_disrupted(status: Manifest) -> bool:
    conditions: list[Manifest] = status.get("conditions") or []
    return any(
        c.get("type") == "DisruptionTarget" and c.get("status") == "True" for c in conditions
    )


def _pending(status: Manifest, container: Manifest) -> Outcome | None:
    waiting: Manifest = container.get("state", {}).get("waiting", {})
    reason, message = str(waiting.get("reason", "")), str(waiting.get("message", ""))
    if reason in _PULL_WAITS or (reason == "ErrImagePull" and _PULL_FOR_GOOD.search(message)):
        return Failed(
            BuildFailed(
                "BUILD_IMAGE_PULL_FAILED",
                f"the image of the build's pod cannot be pulled: {message or reason}",
                "check MAYFLY_KANIKO_IMAGE, and that the cluster may pull it",
            )
        )
    if cannot_be_made(reason, message):
        return Failed(not_started(f"{reason}: {message}"))
    conditions: list[Manifest] = status.get("conditions") or []
    for condition in conditions:
        if condition.get("type") == "PodScheduled" and condition.get("reason") == "Unschedulable":
            return NoRoom(str(condition.get("message", "no node takes the pod")))
    return None


def _told(output: Output, code: int, registry: str) -> Outcome:
    error = output.error
    if "resolving source context" in error:
        return Passing(storage(_short(error)))
    if "push permission" in error or "error pushing image" in error:
        return of_push(error)
    if "failed to execute command" in error:
        exit_code = _EXIT.search(error)
        return Failed(_step(output, int(exit_code[1]) if exit_code else code))
    if "parsing dockerfile" in error:
        place = _LINE.search(error)
        return Failed(
            BuildFailed(
                "BUILD_STEP_FAILED",
                _short(error),
                "correct the Dockerfile",
                line=int(place[1]) if place else 0,
                exit_code=code,
            )
        )
    if missing := _NOT_ADDED.search(error):
        return Failed(
            BuildFailed(
                "BUILD_STEP_FAILED",
                f"the Dockerfile adds {missing[1]}, which the archive does not hold",
                "put it into the archive, or correct the path",
                exit_code=code,
            )
        )
    if _NO_IMAGE.search(error) or "/manifests/" in error:
        return _of_pull(error, registry)
    if _NO_ANSWER.search(error):
        return Passing(unreachable(_short(error)))
    return Failed(
        BuildFailed(
            "BUILD_STEP_FAILED",
            _short(error) or f"the build's pod ended with exit code {code} and said nothing",
            "see the build's log",
            exit_code=code,
        )
    )


def _step(output: Output, code: int) -> BuildFailed:
    said = "\n".join(output.step[-20:])
    return BuildFailed(
        "BUILD_STEP_FAILED",
        f"a step of the image's build ended with exit code {code}" + (f":\n{said}" if said else ""),
        "correct the Dockerfile or what its step needs; the build's log has all of its output",
        exit_code=code,
    )


def _of_pull(error: str, registry: str) -> Outcome:
    if _NO_ANSWER.search(error) and not _REFUSED.search(error):
        if registry in error:
            return Passing(unreachable(_short(error)))
        failure = _no_base(error)
        return Passing(failure)
    return Failed(_no_base(error))


def _no_base(error: str) -> BuildFailed:
    return BuildFailed(
        "BUILD_IMAGE_PULL_FAILED",
        f"a base image cannot be pulled: {_short(error)}",
        "check the image's name and tag, and that the cluster may pull it",
    )


def of_push(error: str) -> Outcome:
    """Return what a failed push comes from."""
    if _NO_ANSWER.search(error) and not _REFUSED.search(error):
        return Passing(unreachable(_short(error)))
    return Failed(
        BuildFailed(
            "PUSH_REFUSED",
            f"the registry refused the image: {_short(error)}",
            "ask the operator to check MAYFLY_REGISTRY and its credentials (MAYFLY_REGISTRY_AUTH)",
        )
    )


def unreachable(message: str) -> BuildFailed:
    """Return the failure of a registry that does not answer."""
    return BuildFailed(
        "REGISTRY_UNREACHABLE",
        f"the registry did not answer: {message}",
        "try again; if it persists, ask the operator to check MAYFLY_REGISTRY",
    )


def storage(message: str) -> BuildFailed:
    """Return the failure of a bucket that has not, or does not take, a context."""
    return BuildFailed(
        "STORAGE_UNREACHABLE",
        f"the storage of build contexts failed: {message}",
        "try again; if it persists, ask the operator to check MAYFLY_S3_BUCKET, "
        "MAYFLY_S3_ENDPOINT_URL and their credentials",
    )


def not_started(message: str) -> BuildFailed:
    """Return the failure of a pod that no node, or no quota, takes."""
    return BuildFailed(
        "BUILD_NOT_STARTED",
        f"the build's pod cannot be started: {message}",
        "ask the operator to make room, to raise the quota of the builds' namespace, or to lower "
        "MAYFLY_BUILD_POD_MEMORY and MAYFLY_BUILD_POD_CPU",
    )


def of_cluster(error: KubeError) -> Outcome:
    """Return what an answer of the API server means for a build."""
    if isinstance(error, Forbidden) and error.verb:
        return Failed(
            BuildFailed(
                "CLUSTER_FORBIDDEN",
                f"the builder may not {error.verb} {error.resource}: {error.message}",
                f"ask the operator to allow it {error.verb} on {error.resource} in the builds' "
                "namespace",
            )
        )
    if isinstance(error, QuotaExceeded):
        return NoRoom(str(error))
    if isinstance(error, Unavailable):
        return Passing(not_started(f"the API server did not answer: {error}"))
    if isinstance(error, NotFound | Invalid | Forbidden):
        return Failed(
            BuildFailed(
                "BUILD_NOT_STARTED",
                f"the cluster does not take the build's pod: {error}",
                "ask the operator to check MAYFLY_BUILDS_NAMESPACE and the settings of build pods",
            )
        )
    return Failed(not_started(str(error)))


def interrupted(why: str, again: str) -> BuildFailed:
    """Return the failure of a build that was taken away twice."""
    return BuildFailed(
        "BUILD_INTERRUPTED",
        f"the build was interrupted twice: {why}; then {again}",
        "try again when the cluster is calm",
    )


def is_stuck(silent: float) -> bool:
    """Whether a pod that has run for `silent` seconds without a word waits for something.

    Kaniko's first words follow when it has its context and the registry has let it push. It waits
    for both as long as a build may take.
    """
    return silent >= _STARTS_SECONDS


def stuck(
    silent: float, bucket: str, registry: str, *, bucket_why: str, registry_why: str
) -> BuildFailed:
    """Return the failure of a build whose time is over while its pod was stuck.

    `bucket` and `registry` say where these are, and the other two why they do not answer the
    builder either, "" where they do.
    """
    if bucket_why:
        return storage(bucket_why)
    if registry_why:
        return unreachable(registry_why)
    return BuildFailed(
        "BUILD_TIMEOUT",
        f"the build's pod waited for {silent:.0f} s, until its time was over, for its context from "
        f"{bucket} or for the registry {registry}, which both answer the builder",
        "ask the operator to check that pods of the builds' namespace may reach both",
    )


def timeout() -> BuildFailed:
    """Return the failure of a build whose pod took too long."""
    return BuildFailed(
        "BUILD_TIMEOUT",
        "the build's pod took longer than a build may",
        "require less or smaller packages, or ask the operator to raise MAYFLY_BUILD_TIMEOUT",
    )


def _short(error: str) -> str:
    text = re.sub(r"^error building image: (error building stage: )?", "", error)
    return re.sub(r", RequestID: [^,]*, HostID: [^,]*", "", text)[:1000]
