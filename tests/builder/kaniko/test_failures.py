"""What became of a pod, by texts and fields as they were seen."""

from __future__ import annotations

from typing import Any

import pytest

from libs.kube.errors import Forbidden, Invalid, KubeError, NotFound, QuotaExceeded, Unavailable
from services.builder.backends.kaniko.failures import (
    Failed,
    NoRoom,
    Passing,
    Pushed,
    TakenAway,
    is_started,
    is_stuck,
    of_cluster,
    outcome,
    stuck,
)
from services.builder.backends.kaniko.output import Output
from services.builder.failures import BuildFailed

REGISTRY = "registry.example:5000"
DIGEST = "sha256:" + "a" * 64
STEP = "error building image: error building stage: failed to execute command: waiting for process"


def pod(phase: str, state: dict[str, Any] | None = None, **status: Any) -> dict[str, Any]:
    """Return a pod whose only container is in a state."""
    statuses = [{"state": state}] if state else []
    return {"metadata": {}, "status": {"phase": phase, "containerStatuses": statuses, **status}}


def ended(code: int, reason: str = "Error", message: str = "") -> dict[str, Any]:
    """Return a pod that ended with an exit code."""
    state = {"terminated": {"exitCode": code, "reason": reason, "message": message}}
    return pod("Succeeded" if code == 0 else "Failed", state)


def said(*lines: str) -> Output:
    """Return what a pod printed."""
    output = Output()
    for line in lines:
        output.read(line)
    return output


def became(given: dict[str, Any] | None, *lines: str) -> Any:
    """Return what became of a pod that printed these lines."""
    return outcome(given, said(*lines), REGISTRY)


@pytest.mark.parametrize("phase", ["Pending", "Running"])
def test_a_pod_under_way_is_open(phase: str) -> None:
    assert became(pod(phase)) is None
    assert became(pod("Pending", {"waiting": {"reason": "ContainerCreating"}})) is None


def test_the_digest_is_the_termination_message() -> None:
    assert became(ended(0, "Completed", f"{DIGEST}\n")) == Pushed(DIGEST)
    assert became(ended(0, "Completed", "something")).failure.reason == "INTERNAL"


def test_a_pushed_image_counts_even_if_the_pod_is_being_deleted() -> None:
    given = ended(0, "Completed", DIGEST)
    given["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert became(given) == Pushed(DIGEST)


def test_what_was_taken_away() -> None:
    deleted = pod("Running")
    deleted["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    disrupted = [{"type": "DisruptionTarget", "status": "True"}]
    for given in (
        None,
        deleted,
        pod("Failed", reason="Evicted", message="The node was low on resource: memory."),
        pod("Failed", conditions=disrupted),
        ended(137),
        ended(143),
    ):
        assert isinstance(became(given), TakenAway), given


@pytest.mark.parametrize(
    ("code", "error", "reason"),
    [
        (7, f"{STEP} to exit: exit status 7", "BUILD_STEP_FAILED"),
        (1, "error building image: parsing dockerfile: x on line 2: y", "BUILD_STEP_FAILED"),
        (
            1,
            "error building image: error building stage: failed to optimize instructions: failed "
            "to get files used from context: failed "
            "to get fileinfo for /kaniko/buildcontext/nothere: "
            "lstat /kaniko/buildcontext/nothere: no such file or directory",
            "BUILD_STEP_FAILED",
        ),
        (
            1,
            "error building image: unable to complete operation after 0 attempts, last error: GET "
            "http://registry.example:5000/v2/nope/manifests/1: MANIFEST_UNKNOWN: manifest unknown; "
            "map[Tag:1]",
            "BUILD_IMAGE_PULL_FAILED",
        ),
        (
            1,
            "error building image: GET https://index.docker.io/v2/a/b/manifests/1: UNAUTHORIZED: "
            "authentication required",
            "BUILD_IMAGE_PULL_FAILED",
        ),
        (
            1,
            "error checking push permissions -- make sure you entered the correct tag name, and "
            "that you are authenticated correctly, and try again: checking push permission for "
            '"x": POST https://registry.example/v2/x/blobs/uploads/: DENIED: requested access '
            "to the resource is denied",
            "PUSH_REFUSED",
        ),
        (
            1,
            "error pushing image: failed to push to destination x: PUT http://x/v2/x/manifests/1: "
            "unexpected status code 405 Method Not Allowed",
            "PUSH_REFUSED",
        ),
        (3, "", "BUILD_STEP_FAILED"),
    ],
)
def test_what_would_fail_again(code: int, error: str, reason: str) -> None:
    found = became(ended(code), "the output", error)
    assert isinstance(found, Failed)
    assert (found.failure.reason, found.failure.exit_code or code) == (reason, code)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            "Error: error resolving source context: operation error S3: GetObject, https response "
            "error StatusCode: 404, RequestID: A, HostID: B, NoSuchKey: ",
            "STORAGE_UNREACHABLE",
        ),
        (
            "error checking push permissions -- make sure you entered the correct tag name, and "
            "that you are authenticated correctly, and try again: checking push permission for "
            '"registry.example:5000/x:1": creating push check transport for registry.example:5000 '
            'failed: Get "http://registry.example:5000/v2/": dial tcp 192.0.2.1:5000: connect: '
            "connection refused",
            "REGISTRY_UNREACHABLE",
        ),
        (
            "error building image: unable to complete operation after 0 attempts, last error: Get "
            '"http://registry.example:5000/v2/": dial tcp 192.0.2.1:5000: i/o timeout',
            "REGISTRY_UNREACHABLE",
        ),
        (
            "error building image: unable to complete operation after 0 attempts, last error: Get "
            '"https://index.docker.io/v2/": dial tcp: lookup index.docker.io: no such host',
            "BUILD_IMAGE_PULL_FAILED",
        ),
        (
            "error pushing image: failed to push to destination x: PUT http://x: unexpected status "
            "code 503 Service Unavailable",
            "REGISTRY_UNREACHABLE",
        ),
    ],
)
def test_what_may_pass(error: str, reason: str) -> None:
    found = became(ended(1), error)
    assert isinstance(found, Passing)
    assert found.failure.reason == reason
    assert "RequestID" not in found.failure.message


def test_a_step_is_told_with_its_output() -> None:
    found = became(
        ended(7),
        '{"level":"info","msg":"Running: [/bin/sh -c true]","time":"t"}',
        "of the step before",
        '{"level":"info","msg":"Running: [/bin/sh -c exit 7]","time":"t"}',
        "so it goes",
        f"{STEP} to exit: exit status 7",
    )
    assert found.failure.exit_code == 7
    assert found.failure.message.endswith("exit code 7:\nso it goes")


def test_a_bad_dockerfile_is_told_with_its_line() -> None:
    error = "error building image: parsing dockerfile: dockerfile parse error on line 2: unknown"
    assert became(ended(1), error).failure.line == 2


def test_memory_and_time() -> None:
    assert became(ended(137, "OOMKilled")).failure.reason == "BUILD_OUT_OF_MEMORY"
    late = pod("Failed", reason="DeadlineExceeded", message="active longer than specified")
    assert became(late).failure.reason == "BUILD_TIMEOUT"


def test_images_of_the_pod_itself() -> None:
    def waiting(reason: str, message: str = "") -> Any:
        return became(pod("Pending", {"waiting": {"reason": reason, "message": message}}))

    assert waiting("ImagePullBackOff").failure.reason == "BUILD_IMAGE_PULL_FAILED"
    assert waiting("ErrImagePull", "x: not found").failure.reason == "BUILD_IMAGE_PULL_FAILED"
    # It is pulled again by itself, and may come then.
    assert waiting("ErrImagePull", "dial tcp: i/o timeout") is None
    assert waiting("CreateContainerConfigError").failure.reason == "BUILD_NOT_STARTED"
    late = "failed to sync secret cache: timed out waiting for the condition"
    assert waiting("CreateContainerConfigError", late) is None


def test_a_pod_that_no_node_takes_waits() -> None:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    message = "0/1 nodes are available: 1 Insufficient cpu."
    assert became(pod("Pending", conditions=[{**condition, "message": message}])) == NoRoom(message)


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (Forbidden("create", "pods", "pods is forbidden"), Failed, "CLUSTER_FORBIDDEN"),
        (Forbidden("", "", "violates PodSecurity"), Failed, "BUILD_NOT_STARTED"),
        (Invalid("no quantity"), Failed, "BUILD_NOT_STARTED"),
        (NotFound("no namespace"), Failed, "BUILD_NOT_STARTED"),
        (Unavailable("refused"), Passing, "BUILD_NOT_STARTED"),
    ],
)
def test_answers_of_the_api_server(error: KubeError, kind: type, reason: str) -> None:
    found: Any = of_cluster(error)
    assert isinstance(found, kind)
    assert found.failure.reason == reason
    if reason == "CLUSTER_FORBIDDEN":
        assert "create pods" in found.failure.message
        assert "create on pods" in found.failure.fix


def test_a_quota_may_have_room_later() -> None:
    assert of_cluster(QuotaExceeded("exceeded quota: x")) == NoRoom("exceeded quota: x")


def test_when_there_is_something_to_read() -> None:
    assert not is_started(None)
    assert not is_started(pod("Pending", {"waiting": {"reason": "ContainerCreating"}}))
    assert is_started(pod("Running", {"running": {}}))
    assert is_started(ended(1))


def waited(bucket_why: str = "", registry_why: str = "") -> BuildFailed:
    return stuck(
        20, "bucket b at http://s3", "r:5000", bucket_why=bucket_why, registry_why=registry_why
    )


def test_a_pod_that_has_said_something_or_has_just_begun_is_not_stuck() -> None:
    assert not is_stuck(0.0)
    assert not is_stuck(4.9)
    assert is_stuck(20.0)


def test_what_a_stuck_pod_waits_for_is_what_does_not_answer_the_builder() -> None:
    assert waited("bucket b at http://s3 said nothing").reason == "STORAGE_UNREACHABLE"
    assert waited("a", "b").reason == "STORAGE_UNREACHABLE"
    assert waited(registry_why="r:5000 said nothing").reason == "REGISTRY_UNREACHABLE"


def test_where_only_the_pod_is_kept_from_them_both_are_named() -> None:
    failure = waited()
    assert failure.reason == "BUILD_TIMEOUT"
    assert "bucket b at http://s3" in failure.message
    assert "r:5000" in failure.message
    assert "reach both" in failure.fix
