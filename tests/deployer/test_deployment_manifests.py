"""The objects of the deployment driver, without a cluster."""

from __future__ import annotations

import base64
import dataclasses
import io
import os
import tarfile
from typing import Any

import pytest

from services.deployer.drivers.base import DeployFailed, Limits, Workload
from services.deployer.drivers.cluster.settings import ClusterSettings
from services.deployer.drivers.deployment.manifests import grace_of, manifests
from services.deployer.drivers.deployment.moves import View, moves
from services.deployer.drivers.deployment.pods import endpoint_of, is_serving, question_of
from services.deployer.drivers.deployment.shape import Setup

SETUP = Setup(ClusterSettings(namespace="fns", runtime_class="gvisor"), "python:3", "index")


def bundle(files: dict[str, str], mode: int = 0o644) -> bytes:
    """A tar.gz of files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(text.encode()), mode
            archive.addfile(member, io.BytesIO(text.encode()))
    return out.getvalue()


SCRIPT = Workload(
    function_id="hello", uid="ab12", revision=3, kind="script", artefact_dir=None,
    entry="script.py", interpreter=None, environment=None, env={"TOKEN": "s3cret"}, port=8000,
    health=None, timeout=10, start_timeout=20, idle_stop=60, concurrency=4, min_instances=0,
    max_instances=4, url="http://x/f/hello", limits=Limits(1 << 28, 64, 1024, 3600),
    bundle=bundle({"script.py": "print(1)\n", "pkg/data.txt": "x"}),
)  # fmt: skip
HANDLER = dataclasses.replace(
    SCRIPT, kind="handler", entry="handler.py", port=8080, bundle=bundle({"handler.py": "pass\n"})
)
IMAGE = dataclasses.replace(SCRIPT, kind="image", bundle=b"", image="r/functions@sha256:0")


def by_kind(workload: Workload, replicas: int = 1) -> dict[str, Any]:
    """The manifests of a workload by their kind."""
    return {each["kind"]: each for each in manifests(workload, SETUP, replicas)}


def pod_of(workload: Workload) -> dict[str, Any]:
    return by_kind(workload)["Deployment"]["spec"]["template"]["spec"]


def test_a_script_is_four_objects_of_its_uid() -> None:
    objects = manifests(SCRIPT, SETUP, 2)
    assert [(each["kind"], each["metadata"]["name"]) for each in objects] == [
        ("ConfigMap", "fn-ab12-00003"),
        ("Secret", "fn-ab12-00003"),
        ("Service", "fn-ab12"),
        ("Deployment", "fn-ab12-00003"),
    ]
    assert {each["metadata"]["namespace"] for each in objects} == {"fns"}
    assert all(each["metadata"]["labels"]["mayfly.dev/uid"] == "ab12" for each in objects)
    assert objects[3]["spec"]["replicas"] == 2
    assert "s3cret" not in str(objects[3])


def test_how_many_there_are_is_not_what_it_was_made_from() -> None:
    one, two = by_kind(SCRIPT, 1)["Deployment"], by_kind(SCRIPT, 2)["Deployment"]
    assert one["metadata"]["annotations"] == two["metadata"]["annotations"]


def test_files_are_mounted_where_the_script_works() -> None:
    data = by_kind(SCRIPT)["ConfigMap"]["binaryData"]
    pod = pod_of(SCRIPT)
    own = next(each for each in pod["volumes"] if each["name"] == "own")["configMap"]["items"]
    contents = {each["path"]: base64.b64decode(data[each["key"]]) for each in own}
    assert contents == {"script.py": b"print(1)\n", "pkg/data.txt": b"x"}
    container = pod["containers"][0]
    assert container["command"] == ["python", "-I", "-S", "/mayfly/runtime/script.py", "script.py"]
    told = {each["name"]: each["value"] for each in container["env"]}
    assert told.items() >= {
        "PORT": "8000", "MAYFLY_START_TIMEOUT": "20", "MAYFLY_TIMEOUT": "10",
        "MAYFLY_OPEN_FILES": "1024",
    }.items()  # fmt: skip
    assert "MAYFLY_REACHED_BY" not in told
    assert {"name": "own", "mountPath": "/function", "readOnly": True} in container["volumeMounts"]
    assert "initContainers" not in pod


@pytest.mark.parametrize(
    "files", [bundle({"script.py": "x"}, 0o755), bundle({"script.py": "# " + "x" * 600_000})]
)
def test_what_a_config_map_cannot_hold_as_it_is_is_unpacked(files: bytes) -> None:
    workload = dataclasses.replace(SCRIPT, bundle=files)
    assert base64.b64decode(by_kind(workload)["ConfigMap"]["binaryData"]["bundle.tar.gz"]) == files
    container = pod_of(workload)["containers"][0]
    variables = {each["name"]: each["value"] for each in container["env"]}
    assert container["command"][3:5] == ["/mayfly/unpack.py", "python"]
    assert variables["MAYFLY_BUNDLE"] == "/mayfly/bundle.tar.gz"


def test_more_than_kubernetes_takes_is_refused() -> None:
    workload = dataclasses.replace(SCRIPT, bundle=bundle({"x": os.urandom(800_000).hex()}, 0o755))
    with pytest.raises(DeployFailed, match="bytes"):
        manifests(dataclasses.replace(workload, lock="x" * 500_000), SETUP, 1)


def test_only_what_installs_has_the_index() -> None:
    pod = pod_of(dataclasses.replace(SCRIPT, lock="six==1.17.0 --hash=sha256:0\n"))
    installer, own = pod["initContainers"][0], pod["containers"][0]
    assert {"--require-hashes", "--only-binary", "--no-deps"} <= set(installer["command"])
    assert installer["envFrom"] == [{"secretRef": {"name": "index"}}]
    assert own["envFrom"] == [{"secretRef": {"name": "fn-ab12-00003"}}]
    assert {"name": "PYTHONPATH", "value": "/env"} in own["env"]


def test_a_handler_is_probed_by_its_server() -> None:
    container = pod_of(HANDLER)["containers"][0]
    assert container["command"] == ["python", "/mayfly/runtime/container.py"]
    assert container["startupProbe"]["httpGet"]["path"] == "/readyz"
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert {"name": "MAYFLY_HANDLER", "value": "/function/handler.py"} in container["env"]


def test_an_image_brings_its_own_command() -> None:
    objects = by_kind(IMAGE)
    assert "ConfigMap" not in objects
    container = pod_of(IMAGE)["containers"][0]
    assert container["image"] == IMAGE.image
    assert "command" not in container


def test_a_script_in_an_image_waits_itself_before_it_ends() -> None:
    workload = dataclasses.replace(IMAGE, kind="script")
    assert "lifecycle" not in pod_of(workload)["containers"][0]
    assert "lifecycle" in pod_of(IMAGE)["containers"][0]


@pytest.mark.parametrize("workload", [SCRIPT, HANDLER, IMAGE])
def test_no_container_may_more_than_it_has_to(workload: Workload) -> None:
    pod = pod_of(
        dataclasses.replace(workload, lock="six==1 --hash=sha256:0" if workload.bundle else "")
    )
    assert pod["automountServiceAccountToken"] is False
    assert pod["runtimeClassName"] == "gvisor"
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        security = container["securityContext"]
        assert security["runAsNonRoot"]
        assert security["readOnlyRootFilesystem"]
        assert not security["allowPrivilegeEscalation"]
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert container["imagePullPolicy"] == "IfNotPresent"
        assert container["resources"]["limits"]["memory"] == str(1 << 28)


def test_requests_have_their_time_to_end_but_not_for_ever() -> None:
    assert grace_of(SCRIPT) == 12
    assert grace_of(dataclasses.replace(SCRIPT, timeout=3600)) == 302


def pod(name: str, address: str, *, ready: bool, container: str = "c1") -> dict[str, Any]:
    """A pod that runs."""
    status = {"name": "function", "state": {"running": {}}, "containerID": container}
    return {
        "metadata": {"name": name},
        "spec": pod_of(SCRIPT),
        "status": {
            "podIP": address,
            "phase": "Running",
            "containerStatuses": [status],
            "conditions": [{"type": "Ready", "status": str(ready)}],
        },
    }


def test_a_pod_serves_by_the_kubelets_word_or_by_its_own_answer() -> None:
    assert is_serving(pod("a", "10.0.0.1", ready=True), {})
    assert not is_serving(pod("a", "10.0.0.1", ready=False), {})
    assert is_serving(pod("a", "10.0.0.1", ready=False), {"a": "c1"})
    assert not is_serving(pod("a", "10.0.0.1", ready=False, container="c2"), {"a": "c1"})
    ending = pod("a", "10.0.0.1", ready=True)
    ending["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert not is_serving(ending, {"a": "c1"})


def test_the_endpoint_of_pods() -> None:
    pods = [pod("b", "10.0.0.2", ready=True), pod("a", "fd00::1", ready=True)]
    assert str(endpoint_of(pods)) == "tcp:10.0.0.2:8000 tcp:[fd00::1]:8000"
    assert str(endpoint_of([])) == ""
    question = question_of(pods[0])
    assert question is not None
    assert (question.address, question.port, question.path) == ("10.0.0.2", 8000, "")


def test_moves_are_told_once_and_again_to_whoever_woke_it() -> None:
    here = endpoint_of([pod("a", "10.0.0.1", ready=True)])
    awake = View(here, 1)
    assert [type(each).__name__ for each in moves("u", View(), awake)] == [
        "EndpointMoved",
        "BecameActive",
    ]
    assert not list(moves("u", awake, awake))
    assert not list(moves("u", awake, View()))
    assert len(list(moves("u", awake, View(here, 1, woken="1.0")))) == 2
    asleep = View(endpoint_of([]), 0)
    assert [type(each).__name__ for each in moves("u", awake, asleep)] == [
        "EndpointMoved",
        "BecameIdle",
    ]
