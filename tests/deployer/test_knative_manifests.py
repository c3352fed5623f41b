"""What a function is in Knative's words."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import pytest

from services.deployer.drivers.base import Limits, Workload
from services.deployer.drivers.cluster.drift import difference
from services.deployer.drivers.cluster.settings import ClusterSettings
from services.deployer.drivers.knative import status
from services.deployer.drivers.knative.manifests import desired

SETTINGS = ClusterSettings(installation="mine", namespace="functions")
WORKLOAD = Workload(
    function_id="hello",
    uid="0123456789abcdef",
    revision=7,
    kind="script",
    artefact_dir=None,
    entry="script.py",
    interpreter=None,
    environment=None,
    env={"KEY": "secret value"},
    port=8000,
    health=None,
    timeout=30.0,
    start_timeout=20.0,
    idle_stop=60.0,
    concurrency=4,
    min_instances=1,
    max_instances=3,
    url="http://hello.localhost",
    limits=Limits(memory_bytes=128_000_000, processes=64, open_files=256, cpu_seconds=60),
    image="registry/functions@sha256:" + "a" * 64,
)


def made(**changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The Service and its container."""
    service = desired(replace(WORKLOAD, **changes), SETTINGS)[-1]
    return service, service["spec"]["template"]["spec"]["containers"][0]


def test_labels_are_on_all_objects_and_pods():
    secret, service = desired(WORKLOAD, SETTINGS)
    template = service["spec"]["template"]["metadata"]
    for labels in (secret["metadata"]["labels"], service["metadata"]["labels"], template["labels"]):
        assert (
            labels.items()
            >= {
                "app.kubernetes.io/managed-by": "mayfly",
                "mayfly.dev/installation": "mine",
                "mayfly.dev/function": "hello",
                "mayfly.dev/uid": "0123456789abcdef",
                "mayfly.dev/revision": "7",
            }.items()
        )
    assert service["metadata"]["labels"]["networking.knative.dev/visibility"] == "cluster-local"
    assert service["metadata"]["name"] == "fn-0123456789abcdef"
    assert template["name"].startswith("fn-0123456789abcdef-00007-")


def test_a_revision_is_renamed_by_whatever_changes_it():
    name = status.template_name(made()[0])
    assert status.template_name(made()[0]) == name
    assert status.template_name(made(image="registry/functions@sha256:" + "b" * 64)[0]) != name


def test_what_its_owner_set_is_in_the_secret_only():
    secret, service = desired(WORKLOAD, SETTINGS)
    assert base64.b64decode(secret["data"]["KEY"]) == b"secret value"
    assert "secret value" not in str(service)
    container = made()[1]
    assert container["envFrom"] == [{"secretRef": {"name": "fn-0123456789abcdef-00007"}}]
    assert [each["kind"] for each in desired(replace(WORKLOAD, env={}), SETTINGS)] == ["Service"]
    assert "envFrom" not in made(env={})[1]


def test_a_script_is_told_its_times_and_that_a_sidecar_is_what_connects():
    told = {each["name"]: each["value"] for each in made()[1]["env"]}
    assert told["MAYFLY_REACHED_BY"] == "loopback"
    assert (told["MAYFLY_START_TIMEOUT"], told["MAYFLY_TIMEOUT"]) == ("20", "30")
    assert told["MAYFLY_OPEN_FILES"] == "256"


def test_scale_concurrency_and_times():
    service, _ = made()
    template = service["spec"]["template"]
    annotations = template["metadata"]["annotations"]
    assert annotations["autoscaling.knative.dev/min-scale"] == "1"
    assert annotations["autoscaling.knative.dev/max-scale"] == "3"
    assert annotations["autoscaling.knative.dev/window"] == "60s"
    assert template["spec"]["containerConcurrency"] == 4
    assert template["spec"]["responseStartTimeoutSeconds"] == 35
    assert template["spec"]["timeoutSeconds"] == 300
    long = made(timeout=3600.0)[0]["spec"]["template"]["spec"]
    assert long["timeoutSeconds"] == long["responseStartTimeoutSeconds"] == 600


def test_a_container_may_next_to_nothing():
    service, container = made()
    spec = service["spec"]["template"]["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert container["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container["resources"]["limits"]["memory"] == "128000000"
    assert spec["volumes"][0]["emptyDir"] == {"medium": "Memory", "sizeLimit": "96000000"}


@pytest.mark.parametrize(
    ("changes", "probe"),
    [
        ({}, {"tcpSocket": {"port": 0}}),
        ({"health": "/up"}, {"httpGet": {"path": "/up", "port": 0}}),
        ({"health": "/up", "http2": True}, {"tcpSocket": {"port": 0}}),
        (
            {"kind": "handler"},
            {
                "httpGet": {
                    "path": "/readyz",
                    "port": 0,
                    "httpHeaders": [{"name": "mayfly-probe", "value": "1"}],
                }
            },
        ),
    ],
)
def test_probes(changes: dict[str, Any], probe: dict[str, Any]):
    _, container = made(**changes)
    assert container["readinessProbe"].items() >= probe.items()
    assert container["readinessProbe"]["periodSeconds"] == 1
    assert ("livenessProbe" in container) == (changes.get("kind") == "handler")


def test_an_answer_may_begin_before_its_request_has_ended():
    def annotations(**changes: Any) -> Any:
        return made(**changes)[0]["spec"]["template"]["metadata"]["annotations"]

    assert annotations()["features.knative.dev/http-full-duplex"] == "Enabled"
    # HTTP/2 has it anyway, and Knative's sidecar fails over the word.
    assert "features.knative.dev/http-full-duplex" not in annotations(http2=True)


def test_http2_is_named_and_runtime_class_and_pull_secrets_are_taken():
    assert made(http2=True)[1]["ports"][0]["name"] == "h2c"
    settings = replace(SETTINGS, runtime_class="gvisor", image_pull_secrets=("one", "two"))
    spec = desired(WORKLOAD, settings)[-1]["spec"]["template"]["spec"]
    assert spec["runtimeClassName"] == "gvisor"
    assert spec["imagePullSecrets"] == [{"name": "one"}, {"name": "two"}]


def test_port_is_left_to_knative():
    _, container = made(kind="handler")
    told = {each["name"]: each["value"] for each in container["env"]}
    assert told["MAYFLY_FUNCTION"] == "hello"
    assert told["MAYFLY_TIMEOUT"] == "30"
    assert "PORT" not in told


def test_differences_are_found_and_what_the_server_adds_is_none():
    service, _ = made()
    found = replace_in(service, "spec.template.spec.serviceAccountName", "default")
    assert difference(service, found) is None
    quantity = replace_in(service, "spec.template.spec.volumes", [
        {"name": "tmp", "emptyDir": {"medium": "Memory", "sizeLimit": "96M"}}
    ])  # fmt: skip
    assert difference(service, quantity) is None
    edited = replace_in(service, "spec.template.spec.timeoutSeconds", 77)
    assert difference(service, edited) == "was changed: spec.template.spec.timeoutSeconds"
    assert difference(service, None) == "was deleted"
    newer, _ = made(revision=8)
    assert difference(service, newer) is None


def replace_in(value: dict[str, Any], path: str, new: Any) -> dict[str, Any]:
    head, _, rest = path.partition(".")
    return value | {head: replace_in(value[head], rest, new) if rest else new}


@pytest.mark.parametrize(
    ("said", "fix"),
    [
        ("unexpected status code 404 Not Found", "give an image that exists"),
        ("HEAD /v2/x/manifests/1: 401 Unauthorized", "MAYFLY_IMAGE_PULL_SECRETS"),
        ("dial tcp 10.0.0.1:443: i/o timeout", "let Knative's controller reach the registry"),
    ],
)
def test_an_image_that_knative_cannot_resolve_has_the_fix_for_its_reason(said: str, fix: str):
    ready = {"type": "Ready", "status": "False", "reason": "ContainerMissing", "message": said}
    trouble = status.revision_trouble({"status": {"conditions": [ready]}})
    assert trouble is not None
    assert (trouble.reason, said in trouble.message) == ("IMAGE_PULL_FAILED", True)
    assert fix in trouble.fix
