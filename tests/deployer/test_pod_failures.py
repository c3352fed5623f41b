"""Why a pod does not start, as pods say it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from libs.kube.errors import Forbidden, Invalid, QuotaExceeded, Unavailable, error_of
from services.deployer.drivers.base import Limits, Workload
from services.deployer.drivers.cluster import failures
from services.deployer.drivers.cluster.settings import ClusterSettings

SETTINGS = ClusterSettings()
SCRIPT = Workload(
    "hello", "0123456789abcdef", 1, "script", None, "script.py", None, None, {}, 8000, None, 10.0,
    20.0, 60.0, 1, 0, 1, "http://x", Limits(128 << 20, 64, 256, 60),
)  # fmt: skip


def pod(state: dict[str, Any], last: dict[str, Any] | None = None, **status: Any) -> dict[str, Any]:
    container = {"name": "function", "state": state, "lastState": last or {}, "restartCount": 0}
    return {
        "metadata": {"name": "p", "uid": "1"},
        "spec": {"containers": [{"name": "function"}, {"name": "queue-proxy"}]},
        "status": {"phase": "Pending", "containerStatuses": [container], **status},
    }


def reason_of(manifest: dict[str, Any], workload: Workload = SCRIPT, waited: float = 0.0) -> str:
    found = failures.trouble_of(manifest, workload, SETTINGS, waited)
    return found.reason if found else ""


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"waiting": {"reason": reason, "message": message}}


def test_one_that_starts_has_no_trouble():
    assert reason_of(pod(waiting("ContainerCreating"))) == ""
    assert reason_of(pod({"running": {"startedAt": "2026-01-01T00:00:00Z"}})) == ""
    ready = {"type": "Ready", "status": "True"}
    was = {"terminated": {"exitCode": 1}}
    assert reason_of(pod({"running": {}}, was, conditions=[ready])) == ""


def test_a_container_that_cannot_be_made_fails_unless_its_node_is_only_late():
    reason = "CreateContainerConfigError"
    assert reason_of(pod(waiting(reason, "container has runAsNonRoot and image will run as root")))
    late = "failed to sync secret cache: timed out waiting for the condition"
    assert reason_of(pod(waiting(reason, late))) == ""


@pytest.mark.parametrize("reason", ["ErrImagePull", "ImagePullBackOff"])
def test_an_image_that_is_not_there_fails_at_once_another_registry_trouble_later(reason: str):
    assert reason_of(pod(waiting(reason, "x: not found"))) == "IMAGE_PULL_FAILED"
    away = pod(waiting(reason, "dial tcp: connection refused"))
    assert reason_of(away) == ""
    assert reason_of(away, waited=11) == "IMAGE_PULL_FAILED"
    denied = failures.trouble_of(pod(waiting(reason, "401 Unauthorized")), SCRIPT, SETTINGS, 0)
    assert denied is not None
    assert "MAYFLY_IMAGE_PULL_SECRETS" in denied.fix


def test_room_is_waited_for():
    lacks = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/1 nodes are available: 1 Insufficient memory.",
    }
    full = pod({}, conditions=[lacks])
    assert reason_of(full, waited=1) == ""
    assert reason_of(full, waited=16) == "UNSCHEDULABLE"


def test_ends_are_told_apart():
    ended = {"terminated": {"exitCode": 3, "reason": "Error"}}
    now = failures.trouble_of(pod(ended), SCRIPT, SETTINGS, 0)
    assert now is not None
    assert (now.reason, now.exit_code, now.logs) == ("SCRIPT_EXITED", 3, "current")
    then = failures.trouble_of(pod(waiting("CrashLoopBackOff"), ended), SCRIPT, SETTINGS, 0)
    assert then is not None
    assert (then.reason, then.exit_code, then.logs) == ("SCRIPT_EXITED", 3, "previous")
    killed = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
    memory = failures.trouble_of(pod(killed), SCRIPT, SETTINGS, 0)
    assert memory is not None
    assert "128 MiB" in memory.message
    handler = replace(SCRIPT, kind="handler")
    assert reason_of(pod(ended), handler) == "INSTANCE_START_FAILED"


@pytest.mark.parametrize(("code", "told"), [(3, 3), (128, 128), (137, -9), (192, -64), (255, 255)])
def test_a_signal_is_told_as_one(code: int, told: int):
    found = failures.trouble_of(pod({"terminated": {"exitCode": code}}), SCRIPT, SETTINGS, 0)
    assert found is not None
    assert found.exit_code == told
    assert (f"signal {-told}" in found.message) == (told < 0)


def test_what_the_container_says_of_itself_counts_most():
    trouble = failures.trouble_of(
        pod({"terminated": {"exitCode": 1}}), replace(SCRIPT, kind="handler"), SETTINGS, 0
    )
    assert trouble is not None
    lines = ["Traceback", 'mayfly-failure: {"reason": "HANDLER_IMPORT_FAILED", "message": "no x"}']
    failure = failures.failed(trouble, lines)
    assert (failure.reason, failure.message) == ("HANDLER_IMPORT_FAILED", "no x")
    assert failure.log_tail == ["Traceback"]
    odd = failures.failed(trouble, ['mayfly-failure: {"reason": "CLUSTER_FORBIDDEN"}'])
    assert odd.reason == "INSTANCE_START_FAILED"


def test_too_late_depends_on_what_was_waited_for():
    assert failures.too_late(SCRIPT).reason == "SCRIPT_NEVER_LISTENED"
    assert failures.too_late(replace(SCRIPT, health="/up")).reason == "HEALTH_CHECK_FAILED"
    assert failures.too_late(replace(SCRIPT, kind="handler")).reason == "HANDLER_IMPORT_FAILED"


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ('pods "x" is forbidden: exceeded quota: q, requested: pods=1', "CLUSTER_QUOTA_EXCEEDED"),
        ('pods "x" is forbidden: violates PodSecurity "restricted"', "INSTANCE_START_FAILED"),
        ('admission webhook "w" denied the request: no', "INSTANCE_START_FAILED"),
        ('Pod "x" is invalid: spec.containers: Required value', "INSTANCE_START_FAILED"),
        (
            'Operation cannot be fulfilled on resourcequotas "q": the object has been modified; '
            "please apply your changes to the latest version and try again",
            "",
        ),
        ('pods "x" is forbidden: status unknown for quota: q', ""),
        ("etcdserver: request timed out", ""),
    ],
)
def test_what_keeps_a_controller_from_making_pods(message: str, reason: str):
    trouble = failures.creation_trouble(message)
    assert (trouble.reason if trouble else "") == reason


def test_refusals_of_the_api_server():
    message = (
        'services.serving.knative.dev is forbidden: User "system:serviceaccount:a:b" cannot patch '
        'resource "services" in API group "serving.knative.dev" in the namespace "functions"'
    )
    error = error_of(403, json.dumps({"message": message}).encode())
    assert isinstance(error, Forbidden)
    assert (error.verb, error.resource) == ("patch", "services.serving.knative.dev")
    refused = failures.refused(error)
    assert refused is not None
    assert refused.reason == "CLUSTER_FORBIDDEN"
    assert "verb patch on services.serving.knative.dev" in refused.fix
    quota = failures.refused(QuotaExceeded("exceeded quota: q"))
    assert quota is not None
    assert quota.reason == "CLUSTER_QUOTA_EXCEEDED"
    invalid = failures.refused(Invalid("spec.x"))
    assert invalid is not None
    assert invalid.reason == "INSTANCE_START_FAILED"
    assert failures.refused(Unavailable("away")) is None
    busy = error_of(429, b"{}", "3")
    assert isinstance(busy, Unavailable)
    assert busy.retry_after == 3.0
