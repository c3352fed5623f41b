"""The objects of a build on the cluster: a pod, and a Secret with what it needs to know."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

from libs.blobs import Location

Manifest: TypeAlias = dict[str, Any]

CONTAINER = "kaniko"
INSTALLATION, BUILD, UID = "mayfly.dev/installation", "mayfly.dev/build", "mayfly.dev/uid"
_AUTH = "config.json"


@dataclass(frozen=True)
class Place:
    """Where builds' pods run and push to, and what they may use.

    `registry` is "host:port/prefix"; `memory` and `cpu` are the pod's limits, as Kubernetes writes
    quantities, and beside them its requests; `auth` is a docker config.json, or empty;
    `index_secret` names a Secret of the namespace whose keys are variables of package indexes, or
    is empty.
    """

    image: str
    namespace: str
    registry: str
    installation: str = "mayfly"
    insecure: bool = False
    auth: str = ""
    memory: str = "2Gi"
    cpu: str = "1"
    requests_memory: str = "256Mi"
    requests_cpu: str = "100m"
    index_secret: str = ""
    pull_secrets: Sequence[str] = ()

    @property
    def host(self) -> str:
        """The registry's "host:port"."""
        return self.registry.partition("/")[0]

    @property
    def repository(self) -> str:
        """Where functions' images are."""
        return f"{self.registry}/functions"

    @property
    def selector(self) -> str:
        """What finds all builds' objects of this installation."""
        return f"{INSTALLATION}={self.installation},{BUILD}"


@dataclass(frozen=True)
class Try:
    """One try of a build. `context` is a key in the bucket, `seconds` how long it may take."""

    build: str
    uid: str
    number: int
    context: str
    seconds: int
    arguments: Mapping[str, str] = field(default_factory=dict[str, str])
    index: Sequence[str] = ()
    images: Sequence[str] = ()

    @property
    def name(self) -> str:
        """The name of its objects."""
        return name_of(self.uid, self.number)


def name_of(uid: str, number: int) -> str:
    """Return the name of a try's objects, from the build's incarnation and the try's number."""
    return f"build-{uid}-{number}"


def number_of(name: str) -> int:
    """Return a try's number, 0 where the name has none."""
    digits = name.rpartition("-")[2]
    return int(digits) if digits.isdigit() else 0


def labels(place: Place, build: str, uid: str) -> dict[str, str]:
    """Return the labels of every object of a build."""
    return {
        "app.kubernetes.io/managed-by": "mayfly",
        "app.kubernetes.io/component": "build",
        INSTALLATION: place.installation,
        BUILD: build,
        UID: uid,
    }


def secret(place: Place, location: Location, one: Try) -> Manifest:
    """Return the Secret of one try: keys of the bucket and of the registry."""
    credentials = {
        "AWS_ACCESS_KEY_ID": location.access_key_id,
        "AWS_SECRET_ACCESS_KEY": location.secret_access_key,
        _AUTH: auth_for(place.auth, {place.host, *(host_of(image) for image in one.images)}),
    }
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": _metadata(place, one),
        "type": "Opaque",
        "data": {name: base64.b64encode(v.encode()).decode() for name, v in credentials.items()},
    }


def pod(place: Place, location: Location, one: Try) -> Manifest:
    """Return the pod of one try.

    It runs as root, since Kaniko writes an image's files with their owners; steps of a Dockerfile
    run in the same container. It has no service account token.
    """
    resources = {
        "limits": {"memory": place.memory, "cpu": place.cpu},
        "requests": {"memory": place.requests_memory, "cpu": place.requests_cpu},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": _metadata(place, one),
        "spec": {
            "restartPolicy": "Never",
            "activeDeadlineSeconds": max(1, one.seconds),
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 1,
            "imagePullSecrets": [{"name": name} for name in place.pull_secrets],
            "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {
                    "name": CONTAINER,
                    "image": place.image,
                    "args": arguments(place, location, one),
                    "env": _variables(location, one),
                    "envFrom": _index(place, one),
                    "resources": resources,
                    "securityContext": {"allowPrivilegeEscalation": False, "privileged": False},
                    "volumeMounts": [
                        {"name": "registry", "mountPath": "/kaniko/.docker", "readOnly": True}
                    ],
                    "terminationMessagePolicy": "FallbackToLogsOnError",
                }
            ],
            "volumes": [
                {
                    "name": "registry",
                    "secret": {
                        "secretName": one.name,
                        "items": [{"key": _AUTH, "path": _AUTH}],
                    },
                }
            ],
        },
    }


def arguments(place: Place, location: Location, one: Try) -> list[str]:
    """Return Kaniko's arguments
    (https://github.com/GoogleContainerTools/kaniko#additional-flags)."""
    given = [
        f"--context=s3://{location.bucket}/{one.context}",
        f"--destination={place.repository}:{one.build}-{one.uid}",
        "--digest-file=/dev/termination-log",
        "--cache=true",
        f"--cache-repo={place.registry}/cache",
        "--compressed-caching=false",
        "--skip-unused-stages",
        "--push-retry=3",
        "--image-download-retry=2",
        "--log-format=json",
    ]
    if place.insecure:
        given.append(f"--insecure-registry={place.host}")
    given += [f"--build-arg={name}={value}" for name, value in sorted(one.arguments.items())]
    # Without a value it is taken from the environment, so that no manifest shows it.
    given += [f"--build-arg={name}" for name in one.index]
    return given


def auth_for(config: str, hosts: Iterable[str]) -> str:
    """Return a docker config.json with the entries of these hosts only."""
    wanted = set(hosts)
    parsed: Any = json.loads(config) if config else {}
    known = cast("dict[str, Any]", parsed.get("auths") or {}) if isinstance(parsed, dict) else {}
    kept = {name: entry for name, entry in known.items() if _host(name) in wanted}
    return json.dumps({"auths": kept})


def host_of(image: str) -> str:
    """Return the registry of a reference; Docker Hub's own name where it has none
    (https://github.com/distribution/reference)."""
    first, slash, _ = image.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return first
    return "index.docker.io"


def _host(name: str) -> str:
    return name.removeprefix("https://").removeprefix("http://").partition("/")[0]


def _metadata(place: Place, one: Try) -> Manifest:
    return {
        "name": one.name,
        "namespace": place.namespace,
        "labels": labels(place, one.build, one.uid),
    }


def _variables(location: Location, one: Try) -> list[Manifest]:
    plain = {
        "AWS_REGION": location.region,
        "S3_ENDPOINT": location.endpoint_url,
        "S3_FORCE_PATH_STYLE": "true" if location.path_style else "",
    }
    given: list[Manifest] = [{"name": k, "value": v} for k, v in plain.items() if v]
    if location.access_key_id:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            of = {"secretKeyRef": {"name": one.name, "key": name}}
            given.append({"name": name, "valueFrom": of})
    return given


def _index(place: Place, one: Try) -> list[Manifest]:
    if not one.index:
        return []
    return [{"secretRef": {"name": place.index_secret}}]
