"""What the container of every function may, has and is told; pure."""

from __future__ import annotations

import base64
import math
from typing import Any

from libs.kube.kinds import Manifest
from services.deployer.drivers.base import Workload
from services.deployer.drivers.cluster import names
from services.deployer.drivers.cluster.settings import ClusterSettings

USER = 65532
CONTAINER = "function"
PROBE_HEADER = "mayfly-probe"
_MAX_BODY = 100 << 20
_EPHEMERAL = "256Mi"  # log files count; the root is read-only and /tmp is in memory
_CPU_REQUEST = "10m"
_MEMORY_SHARE = 8
_HANDLERS = frozenset({"handler", "go_handler"})


def security_context() -> dict[str, Any]:
    """Everything that the "restricted" Pod Security Standard asks for, and a read-only root."""
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def resources(workload: Workload) -> dict[str, Any]:
    """As on one machine, memory is bounded, not set aside: most functions wait most of the time."""
    memory = workload.limits.memory_bytes
    return {
        "requests": {
            "cpu": _CPU_REQUEST,
            "memory": str(math.ceil(memory / _MEMORY_SHARE)),
            # Said, or it would be the limit; and there are nodes that do not know what they have.
            "ephemeral-storage": "0",
        },
        "limits": {"memory": str(memory), "ephemeral-storage": _EPHEMERAL},
    }


def scratch(workload: Workload) -> dict[str, Any]:
    """The volume for /tmp: in memory, so it counts as memory. It holds less than an instance may
    have, so that one that fills it is told that it is full, and is not ended for it."""
    size = str(workload.limits.memory_bytes * 3 // 4)
    return {"name": "tmp", "emptyDir": {"medium": "Memory", "sizeLimit": size}}


SCRATCH_MOUNT: dict[str, Any] = {"name": "tmp", "mountPath": "/tmp"}


def environment(workload: Workload) -> dict[str, str]:
    """What the platform tells every function, beside `PORT` and what its owner set."""
    values = {
        "HOME": "/tmp",
        "TMPDIR": "/tmp",
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "MAYFLY_FUNCTION": workload.function_id,
        "MAYFLY_URL": workload.url,
        "MAYFLY_TIMEOUT": f"{workload.timeout:g}",
        "MAYFLY_OPEN_FILES": str(workload.limits.open_files),
    }
    if workload.kind in _HANDLERS:
        values |= {
            "MAYFLY_CONCURRENCY": str(workload.concurrency),
            "MAYFLY_MAX_BODY": str(min(_MAX_BODY, workload.limits.memory_bytes // 4)),
        }
    if workload.kind == "script":
        values["MAYFLY_START_TIMEOUT"] = f"{workload.start_timeout:g}"
    if workload.kind == "go_handler":
        values["GOMEMLIMIT"] = str(workload.limits.memory_bytes * 9 // 10)
    return values


def env_list(workload: Workload) -> list[dict[str, str]]:
    """`environment` as a container has it. The owner's values win where both have one that is
    not Mayfly's own."""
    return [
        {"name": name, "value": value}
        for name, value in environment(workload).items()
        if name.startswith("MAYFLY_") or name not in workload.env
    ]


def env_from(workload: Workload) -> list[dict[str, Any]]:
    """What its owner set comes from a Secret, so that it is in no manifest."""
    if not workload.env:
        return []
    return [{"secretRef": {"name": names.revision_name(workload.uid, workload.revision)}}]


def env_secret(workload: Workload, settings: ClusterSettings) -> list[Manifest]:
    """The Secret with what its owner set; none where nothing is."""
    if not workload.env:
        return []
    data = {
        name: base64.b64encode(value.encode()).decode()
        for name, value in sorted(workload.env.items())
    }
    return [
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": names.revision_name(workload.uid, workload.revision),
                "namespace": settings.namespace,
                "labels": names.labels(workload, settings),
            },
            "type": "Opaque",
            "data": data,
        }
    ]


def is_handler(workload: Workload) -> bool:
    """Whether Mayfly's own server is in front of the code, with its paths for probes."""
    return workload.kind in _HANDLERS


def probe(workload: Workload, port: int, path: str = "/readyz") -> dict[str, Any]:
    """How its readiness is asked for: by Mayfly's path, by its own, or by connecting.

    port: 0 is the container's own, for Knative.
    """
    if is_handler(workload):
        headers = [{"name": PROBE_HEADER, "value": "1"}]
        return {"httpGet": {"path": path, "port": port, "httpHeaders": headers}}
    if workload.health and not workload.http2:
        return {"httpGet": {"path": workload.health, "port": port}}
    return {"tcpSocket": {"port": port}}


def pod_fields(workload: Workload, settings: ClusterSettings) -> dict[str, Any]:
    """What a pod's spec has beside containers: no token, no others' addresses, its runtime."""
    fields: dict[str, Any] = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "volumes": [scratch(workload)],
    }
    if settings.runtime_class:
        fields["runtimeClassName"] = settings.runtime_class
    if settings.image_pull_secrets:
        fields["imagePullSecrets"] = [{"name": name} for name in settings.image_pull_secrets]
    return fields
