"""The objects of one revision of a function, as values."""

from __future__ import annotations

import base64
import io
import math
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import runtimes.python
from libs.kube.kinds import Manifest
from services.deployer.drivers.base import DeployFailed, Workload
from services.deployer.drivers.deployment import start
from services.deployer.drivers.deployment.shape import (
    ENVIRONMENT_DIR,
    FILES_DIR,
    FUNCTION_DIR,
    PROBE_HEADER,
    Setup,
    labels,
    limits,
    pod_settings,
    revision_name,
    security,
    service_name,
)

CONTAINER = "function"
INSTALLER = "requirements"
MAX_CONFIG_BYTES = 1_000_000
"""Kubernetes takes 1 MiB of data in a ConfigMap, names of keys and all."""
_MOUNTED_BYTES = 512 * 1024
_LONGEST_GRACE = 300.0
_START_MARGIN_SECONDS = 5
_BUNDLE = "bundle.tar.gz"
_LOCK = "requirements.txt"


@dataclass(frozen=True)
class Files:
    """Files of a ConfigMap: contents by key, and the path of each key in the two volumes.

    own: the function's files, mounted read-only where it works; empty where they are unpacked.
    """

    contents: Mapping[str, bytes]
    platform: Mapping[str, str]
    own: Mapping[str, str]


def manifests(workload: Workload, setup: Setup, replicas: int) -> list[Manifest]:
    """Return all objects of a revision in the order in which they are applied.

    Raises DeployFailed where they are larger than Kubernetes takes.
    """
    files = None if workload.image else files_of(workload)
    objects = [deployment(workload, setup, files, replicas), service(workload, setup)]
    if workload.env:
        objects.insert(0, secret(workload, setup))
    if files is not None:
        objects.insert(0, config_map(workload, setup, files))
    return objects


def files_of(workload: Workload) -> Files:
    """Return what a bundle's container needs as files."""
    contents = {"start.py": _start_source()}
    platform = {"start.py": "start.py"}
    own: dict[str, str] = {}
    if workload.lock.strip():
        contents[_LOCK] = workload.lock.encode()
        platform[_LOCK] = _LOCK
    if workload.kind == "handler":
        for name, text in _runtime_sources().items():
            contents[f"runtime.{name}"] = text
            platform[f"runtime.{name}"] = f"runtime/{name}"
    plain = _plain_files(workload.bundle)
    if plain is None:
        contents[_BUNDLE] = workload.bundle
        platform[_BUNDLE] = _BUNDLE
    else:
        for number, (path, content) in enumerate(sorted(plain.items())):
            contents[f"file.{number}"] = content
            own[f"file.{number}"] = path
    size = sum(len(key) + len(content) for key, content in contents.items())
    if size > MAX_CONFIG_BYTES:
        raise DeployFailed(
            "INSTANCE_START_FAILED",
            f"its files and locked requirements have {size} bytes; "
            f"without an image it can have {MAX_CONFIG_BYTES}",
            "send less, or build an image",
        )
    return Files(contents, platform, own)


def config_map(workload: Workload, setup: Setup, files: Files) -> Manifest:
    """Return the files of a revision."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(workload, setup),
        "binaryData": {
            key: base64.b64encode(content).decode() for key, content in files.contents.items()
        },
    }


def secret(workload: Workload, setup: Setup) -> Manifest:
    """Return the environment variables of a revision."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": _metadata(workload, setup),
        "data": {
            name: base64.b64encode(value.encode()).decode() for name, value in workload.env.items()
        },
    }


def service(workload: Workload, setup: Setup) -> Manifest:
    """Return the name under which people reach a function inside the cluster; gateways do not."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": service_name(workload.uid),
            "namespace": setup.namespace,
            # Of no revision: it is the same for all of them.
            "labels": {
                key: value
                for key, value in labels(workload, setup).items()
                if key != "mayfly.dev/revision"
            },
        },
        "spec": {
            "clusterIP": "None",
            "selector": {"mayfly.dev/uid": workload.uid},
            "ports": [{"name": "http", "port": workload.port, "protocol": "TCP"}],
        },
    }


def deployment(workload: Workload, setup: Setup, files: Files | None, replicas: int) -> Manifest:
    """Return what runs a revision."""
    own = labels(workload, setup)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(workload, setup),
        "spec": {
            "replicas": replicas,
            "revisionHistoryLimit": 0,
            "progressDeadlineSeconds": math.ceil(workload.start_timeout) + 60,
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
            },
            "selector": {
                "matchLabels": {
                    key: own[key] for key in ("mayfly.dev/uid", "mayfly.dev/revision")
                }
            },
            "template": {
                "metadata": {"labels": own},
                "spec": _pod(workload, setup, files),
            },
        },
    }


def _metadata(workload: Workload, setup: Setup) -> dict[str, Any]:
    return {
        "name": revision_name(workload.uid, workload.revision),
        "namespace": setup.namespace,
        "labels": labels(workload, setup),
    }


def grace_of(workload: Workload) -> float:
    """Seconds that an instance has to finish what it was asked before it is killed."""
    return min(max(workload.timeout, 1.0), _LONGEST_GRACE) + 2.0


def _pod(workload: Workload, setup: Setup, files: Files | None) -> dict[str, Any]:
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": workload.image or setup.python_image,
        "imagePullPolicy": "IfNotPresent",
        "ports": [{"name": "http", "containerPort": workload.port, "protocol": "TCP"}],
        "env": _variables(workload, files),
        "resources": limits(workload),
        "securityContext": security(),
        "startupProbe": {
            **_probe(workload, "/readyz", workload.health),
            "periodSeconds": 1,
            "timeoutSeconds": 2,
            "failureThreshold": math.ceil(workload.start_timeout) + _START_MARGIN_SECONDS,
        },
        "livenessProbe": {
            **_probe(workload, "/healthz", None),
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 3,
        },
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    if workload.env:
        name = revision_name(workload.uid, workload.revision)
        container["envFrom"] = [{"secretRef": {"name": name}}]
    pod = {
        **pod_settings(setup),
        "terminationGracePeriodSeconds": math.ceil(grace_of(workload)),
        "containers": [container],
        "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": workload.limits.memory_bytes}}],
    }
    if files is None:
        # What an image does with SIGTERM is its own affair: it comes when nobody new is sent.
        seconds = math.ceil(min(workload.timeout, 5.0))
        container["lifecycle"] = {"preStop": {"sleep": {"seconds": seconds}}}
        return pod
    container["command"] = _command(workload)
    container["workingDir"] = FUNCTION_DIR
    _mount_files(pod, container, workload, setup, files)
    return pod


def _command(workload: Workload) -> list[str]:
    runs = ["python", "-I", "-S", f"{FILES_DIR}/start.py"]
    if workload.kind == "script":
        times = [f"{workload.start_timeout:g}", f"{grace_of(workload):g}"]
        return [*runs, "script", str(workload.port), *times, workload.entry]
    serves = ["python", f"{FILES_DIR}/runtime/container.py"]
    return serves if _plain_files(workload.bundle) is not None else [*runs, "exec", *serves]


def _variables(workload: Workload, files: Files | None) -> list[dict[str, str]]:
    """What a function is told; it wins over variables of the same name in the Secret."""
    variables = {
        "PORT": str(workload.port),
        "MAYFLY_FUNCTION": workload.function_id,
        "MAYFLY_URL": workload.url,
        "HOME": "/tmp",
    }
    if workload.kind == "handler":
        variables |= {
            "MAYFLY_HANDLER": f"{FUNCTION_DIR}/{workload.entry}",
            "MAYFLY_TIMEOUT": f"{workload.timeout:g}",
            "MAYFLY_CONCURRENCY": str(workload.concurrency),
            "MAYFLY_MAX_BODY": str(min(workload.limits.memory_bytes // 4, 100 << 20)),
        }
    if files is not None:
        variables["PYTHONUNBUFFERED"] = "1"
        if _BUNDLE in files.contents:
            variables["MAYFLY_BUNDLE"] = f"{FILES_DIR}/{_BUNDLE}"
        if _LOCK in files.contents:
            name = "MAYFLY_SITE" if workload.kind == "handler" else "PYTHONPATH"
            variables[name] = ENVIRONMENT_DIR
    return [{"name": name, "value": value} for name, value in variables.items()]


def _probe(workload: Workload, path: str, health: str | None) -> dict[str, Any]:
    if workload.kind in ("handler", "go_handler"):
        headers = [{"name": PROBE_HEADER, "value": "kubelet"}]
        return {"httpGet": {"path": path, "port": workload.port, "httpHeaders": headers}}
    if health:
        return {"httpGet": {"path": health, "port": workload.port}}
    return {"tcpSocket": {"port": workload.port}}


def _mount_files(
    pod: dict[str, Any],
    container: dict[str, Any],
    workload: Workload,
    setup: Setup,
    files: Files,
) -> None:
    name = revision_name(workload.uid, workload.revision)
    volumes, mounts = pod["volumes"], container["volumeMounts"]
    volumes.append(_files_volume("files", name, files.platform))
    mounts.append({"name": "files", "mountPath": FILES_DIR, "readOnly": True})
    if files.own:
        volumes.append(_files_volume("own", name, files.own))
    else:
        volumes.append({"name": "own", "emptyDir": {}})
    mounts.append({"name": "own", "mountPath": FUNCTION_DIR, "readOnly": bool(files.own)})
    if _LOCK not in files.contents:
        return
    volumes.append({"name": "environment", "emptyDir": {}})
    mounts.append({"name": "environment", "mountPath": ENVIRONMENT_DIR, "readOnly": True})
    pod["initContainers"] = [_installer(workload, setup)]


def _files_volume(name: str, config_map: str, paths: Mapping[str, str]) -> dict[str, Any]:
    items = [{"key": key, "path": path} for key, path in paths.items()]
    return {"name": name, "configMap": {"name": config_map, "items": items, "defaultMode": 0o444}}


def _installer(workload: Workload, setup: Setup) -> dict[str, Any]:
    """What installs the locked requirements: of known hashes only, and nothing that is built."""
    installer: dict[str, Any] = {
        "name": INSTALLER,
        "image": setup.python_image,
        "imagePullPolicy": "IfNotPresent",
        "command": [
            *("uv", "pip", "install", "--python", "python", "--target", ENVIRONMENT_DIR),
            *("--no-deps", "--require-hashes", "--only-binary", ":all:", "--no-cache"),
            *("--no-config", "--quiet", "--requirements", f"{FILES_DIR}/{_LOCK}"),
        ],
        # The same file system as the target, so that files are linked and not copied.
        "env": [
            {"name": "TMPDIR", "value": ENVIRONMENT_DIR},
            {"name": "HOME", "value": "/tmp"},
        ],
        "resources": limits(workload),
        "securityContext": security(),
        "volumeMounts": [
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "files", "mountPath": FILES_DIR, "readOnly": True},
            {"name": "environment", "mountPath": ENVIRONMENT_DIR},
        ],
    }
    if setup.index_secret:
        installer["envFrom"] = [{"secretRef": {"name": setup.index_secret}}]
    return installer


def _plain_files(bundle: bytes) -> dict[str, bytes] | None:
    """The files of a bundle by path, where a ConfigMap can hold them as they are; else None."""
    found: dict[str, bytes] = {}
    room = _MOUNTED_BYTES
    with tarfile.open(fileobj=io.BytesIO(bundle)) as archive:
        for member in archive:
            path = member.name.removeprefix("./")
            if member.isdir():
                continue
            room -= member.size
            content = archive.extractfile(member)
            # Neither links nor programs nor empty folders: those are unpacked.
            if room < 0 or not member.isreg() or member.mode & 0o111 or content is None:
                return None
            if path.startswith(("/", "..")):
                return None
            found[path] = content.read()
    return found or None


@cache
def _start_source() -> bytes:
    return Path(start.__file__).read_bytes()


@cache
def _runtime_sources() -> dict[str, bytes]:
    folder = Path(runtimes.python.__file__).parent
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.py"))}
