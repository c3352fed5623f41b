"""What all objects of the deployment driver have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from services.deployer.drivers.base import Workload

FILES_DIR = "/mayfly"
FUNCTION_DIR = "/function"
ENVIRONMENT_DIR = "/env"
PROBE_HEADER = "mayfly-probe"


@dataclass(frozen=True)
class Setup:
    """How this Mayfly uses the cluster.

    python_image: has `python` and `uv`. index_secret: Secret with uv's variables; "" for none.
    """

    namespace: str
    installation: str
    python_image: str
    index_secret: str = ""
    runtime_class: str = ""
    image_pull_secrets: tuple[str, ...] = ()


def service_name(uid: str) -> str:
    return f"fn-{uid}"


def revision_name(uid: str, revision: int) -> str:
    return f"fn-{uid}-{revision}"


def labels(workload: Workload, setup: Setup) -> dict[str, str]:
    return {
        "app.kubernetes.io/managed-by": "mayfly",
        "mayfly.dev/installation": setup.installation,
        "mayfly.dev/function": workload.function_id,
        "mayfly.dev/uid": workload.uid,
        "mayfly.dev/revision": str(workload.revision),
    }


def limits(workload: Workload) -> dict[str, Any]:
    memory = str(workload.limits.memory_bytes)
    return {"requests": {"memory": memory, "cpu": "10m"}, "limits": {"memory": memory}}


def security() -> dict[str, Any]:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def pod_settings(setup: Setup) -> dict[str, Any]:
    settings: dict[str, Any] = {"automountServiceAccountToken": False, "enableServiceLinks": False}
    if setup.runtime_class:
        settings["runtimeClassName"] = setup.runtime_class
    if setup.image_pull_secrets:
        settings["imagePullSecrets"] = [{"name": name} for name in setup.image_pull_secrets]
    return settings
