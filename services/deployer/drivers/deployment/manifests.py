"""The objects of one revision of a function, as values."""

from __future__ import annotations

import base64
import io
import math
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from libs.kube.kinds import Manifest
from runtimes import container_files
from services.deployer.drivers import deployment as deployment_package
from services.deployer.drivers.base import DeployFailed, Workload
from services.deployer.drivers.cluster import container as shared
from services.deployer.drivers.cluster import failures, names
from services.deployer.drivers.cluster.drift import stamped
from services.deployer.drivers.deployment.shape import (
    ENVIRONMENT_DIR,
    FILES_DIR,
    FUNCTION_DIR,
    INSTALLER,
    Setup,
)

MAX_CONFIG_BYTES = 1_000_000
"""Kubernetes takes 1 MiB of data in a ConfigMap, names of keys and all."""
_MOUNTED_BYTES = 512 * 1024
_LONGEST_GRACE = 300.0
_IMAGE_GRACE = 5.0
_ROOM = "4Gi"
_START_MARGIN_SECONDS = 5
_BUNDLE = "bundle.tar.gz"
_LOCK = "requirements.txt"
_UNPACK = "unpack.py"
_ALONE = ("python", "-I", "-S")  # of the user's, nothing is imported


@dataclass(frozen=True)
class Files:
    """Files of a ConfigMap: contents by key, and the path of each key in the two volumes.

    own: the function's files, mounted read-only where it works; empty where they are unpacked.
    """

    contents: Mapping[str, bytes]
    platform: Mapping[str, str]
    own: Mapping[str, str]


def manifests(workload: Workload, setup: Setup, replicas: int) -> list[Manifest]:
    """Return all objects of a revision, each stamped, the Deployment last.

    Raises DeployFailed where they are larger than Kubernetes takes.
    """
    files = None if workload.image else files_of(workload)
    objects = [
        *([] if files is None else [config_map(workload, setup, files)]),
        *shared.env_secret(workload, setup.cluster),
        service(workload, setup),
        deployment(workload, setup, files),
    ]
    stamps = [stamped(each) for each in objects]
    # What an object was made from does not say how many there are to be.
    stamps[-1]["spec"]["replicas"] = replicas
    return stamps


def files_of(workload: Workload) -> Files:
    """Return what a bundle's container needs as files."""
    contents: dict[str, bytes] = {}
    platform: dict[str, str] = {}
    own: dict[str, str] = {}
    if workload.lock.strip():
        contents[_LOCK] = workload.lock.encode()
        platform[_LOCK] = _LOCK
    files = (
        container_files.of_handlers if workload.kind == "handler" else container_files.of_scripts
    )
    for path, content in files(workload.python_version).items():
        key = f"runtime.{path.replace('/', '.')}"
        contents[key] = content
        platform[key] = f"runtime/{path}"
    plain = _plain_files(workload.bundle)
    if plain is None:
        contents |= {_BUNDLE: workload.bundle, _UNPACK: _unpack_source()}
        platform |= {_BUNDLE: _BUNDLE, _UNPACK: _UNPACK}
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


def service(workload: Workload, setup: Setup) -> Manifest:
    """Return the name under which people reach a function inside the cluster; gateways do not."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": names.function_name(workload.uid),
            "namespace": setup.cluster.namespace,
            # Of no revision: it is the same for all of them.
            "labels": {
                key: value
                for key, value in names.labels(workload, setup.cluster).items()
                if key != names.REVISION
            },
        },
        "spec": {
            "clusterIP": "None",
            "selector": {names.UID: workload.uid},
            "ports": [{"name": "http", "port": workload.port, "protocol": "TCP"}],
        },
    }


def deployment(workload: Workload, setup: Setup, files: Files | None) -> Manifest:
    """Return what runs a revision; how many of it is not said here."""
    own = names.labels(workload, setup.cluster)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(workload, setup),
        "spec": {
            "revisionHistoryLimit": 0,
            "progressDeadlineSeconds": math.ceil(workload.start_timeout) + 60,
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
            },
            "selector": {"matchLabels": {key: own[key] for key in (names.UID, names.REVISION)}},
            "template": {
                "metadata": {"labels": own},
                "spec": _pod(workload, setup, files),
            },
        },
    }


def _metadata(workload: Workload, setup: Setup) -> dict[str, Any]:
    return {
        "name": names.revision_name(workload.uid, workload.revision),
        "namespace": setup.cluster.namespace,
        "labels": names.labels(workload, setup.cluster),
    }


def grace_of(workload: Workload) -> float:
    """Seconds that an instance has to finish what it was asked before it is killed."""
    return min(max(workload.timeout, 1.0), _LONGEST_GRACE) + 2.0


def _pod(workload: Workload, setup: Setup, files: Files | None) -> dict[str, Any]:
    pod = shared.pod_fields(workload, setup.cluster)
    container: dict[str, Any] = {
        "name": shared.CONTAINER,
        "image": workload.image or setup.python_image,
        "imagePullPolicy": "IfNotPresent",
        "ports": [{"name": "http", "containerPort": workload.port, "protocol": "TCP"}],
        "env": _variables(workload, files),
        "envFrom": shared.env_from(workload),
        "resources": shared.resources(workload),
        "securityContext": shared.security_context(),
        "startupProbe": {
            **shared.probe(workload, workload.port),
            "periodSeconds": 1,
            "timeoutSeconds": 2,
            "failureThreshold": math.ceil(failures.patience(workload)) + _START_MARGIN_SECONDS,
        },
        "livenessProbe": {
            **_liveness(workload),
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 3,
        },
        "volumeMounts": [shared.SCRATCH_MOUNT],
    }
    pod["terminationGracePeriodSeconds"] = math.ceil(grace_of(workload))
    pod["containers"] = [container]
    if files is None:
        if workload.kind == "script":
            return pod  # the first process of its image waits itself
        # What an image does with SIGTERM is its own affair: it comes when nobody new is sent.
        seconds = math.ceil(min(workload.timeout, _IMAGE_GRACE))
        container["lifecycle"] = {"preStop": {"sleep": {"seconds": seconds}}}
        return pod
    container["command"] = _command(workload, files)
    container["workingDir"] = FUNCTION_DIR
    _mount_files(pod, container, workload, setup, files)
    return pod


def _command(workload: Workload, files: Files) -> list[str]:
    if workload.kind == "script":
        runs = [*_ALONE, f"{FILES_DIR}/runtime/script.py", workload.entry]
    else:
        runs = ["python", f"{FILES_DIR}/runtime/container.py"]
    return runs if files.own else [*_ALONE, f"{FILES_DIR}/{_UNPACK}", *runs]


def _variables(workload: Workload, files: Files | None) -> list[dict[str, str]]:
    """What a function is told; it wins over variables of the same name in the Secret."""
    variables = {"PORT": str(workload.port)}
    if workload.kind == "handler" and files is not None:
        variables["MAYFLY_HANDLER"] = f"{FUNCTION_DIR}/{workload.entry}"
    if files is not None and _BUNDLE in files.contents:
        variables["MAYFLY_BUNDLE"] = f"{FILES_DIR}/{_BUNDLE}"
    if files is not None and _LOCK in files.contents:
        name = "MAYFLY_SITE" if workload.kind == "handler" else "PYTHONPATH"
        variables[name] = ENVIRONMENT_DIR
    own = [{"name": name, "value": value} for name, value in variables.items()]
    return own + shared.env_list(workload)


def _liveness(workload: Workload) -> dict[str, Any]:
    """A script that is busy with its health path is not dead; one whose port is closed is."""
    if shared.is_handler(workload):
        return shared.probe(workload, workload.port, "/healthz")
    return {"tcpSocket": {"port": workload.port}}


def _mount_files(
    pod: dict[str, Any],
    container: dict[str, Any],
    workload: Workload,
    setup: Setup,
    files: Files,
) -> None:
    name = names.revision_name(workload.uid, workload.revision)
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
    container["resources"] = _with_room(container["resources"])
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
        "resources": _with_room(shared.resources(workload)),
        "securityContext": shared.security_context(),
        "volumeMounts": [
            shared.SCRATCH_MOUNT,
            {"name": "files", "mountPath": FILES_DIR, "readOnly": True},
            {"name": "environment", "mountPath": ENVIRONMENT_DIR},
        ],
    }
    if setup.index_secret:
        installer["envFrom"] = [{"secretRef": {"name": setup.index_secret}}]
    return installer


def _with_room(resources: dict[str, Any]) -> dict[str, Any]:
    """Installed requirements are on the node's disk, and count."""
    return {**resources, "limits": {**resources["limits"], "ephemeral-storage": _ROOM}}


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
def _unpack_source() -> bytes:
    return resources.files(deployment_package).joinpath(_UNPACK).read_bytes()
