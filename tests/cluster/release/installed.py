"""A release of the chart in namespaces of its own, and whether it leaves anything behind.

`python -m tests.cluster.release.installed --driver deployment` installs one, prints its URL, and
removes it at Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import secrets
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import httpx
from botocore.config import Config

from tests.cluster import image
from tests.cluster.release.database import database
from tests.cluster.release.knative_network import no_mesh

ROOT = Path(__file__).resolve().parents[3]
CHART = ROOT / "helm" / "mayfly"
RELEASE = "mayfly"
INSTALL_SECONDS = 240
END_SECONDS = 120
LABEL = "mayfly.dev/installation"
# Everything that a release, its functions or its builds may consist of.
KINDS = (
    "pods,services,configmaps,secrets,deployments.apps,replicasets.apps,jobs.batch,"
    "networkpolicies.networking.k8s.io,roles.rbac.authorization.k8s.io,"
    "rolebindings.rbac.authorization.k8s.io,serviceaccounts"
)
KNATIVE_KINDS = "services.serving.knative.dev,revisions.serving.knative.dev"
CLUSTER_KINDS = (
    "namespaces,clusterroles.rbac.authorization.k8s.io,"
    "clusterrolebindings.rbac.authorization.k8s.io"
)


class Leftovers(AssertionError):
    """Something of the release remained after its end."""


@dataclass(frozen=True)
class Release:
    """A release that runs, and where its things are."""

    driver: str
    namespace: str
    url: str
    repository: str
    """Where functions' images go."""
    bucket: str
    """Empty where the release has storage of its own (demo)."""
    storage: Any = field(repr=False)
    """A client of the S3 server under test."""
    database_url: str
    """Empty where the release has a database of its own (demo)."""
    values: dict[str, Any] = field(repr=False)

    @property
    def functions(self) -> str:
        """The functions' namespace."""
        return f"{self.namespace}-functions"

    @property
    def builds(self) -> str:
        """The builds' namespace."""
        return f"{self.namespace}-builds"

    @property
    def installation(self) -> str:
        """What its objects are labelled with."""
        return f"{self.namespace}-{RELEASE}"

    def upgrade(self, **values: Any) -> None:
        """Run `helm upgrade` with values laid over those of the installation, and wait."""
        helm("upgrade", self.namespace, merged(self.values, values))

    def function_objects(self) -> list[str]:
        """Return the objects of functions and builds that there are, as kind/name."""
        kinds = f"{KINDS},{KNATIVE_KINDS}" if self.driver == "knative" else KINDS
        selector = f"{LABEL}={self.installation}"
        return _names("-A", kinds, selector)

    def images(self) -> list[str]:
        """Return the tags of functions' images."""
        listed = subprocess.run(
            ["crane", "ls", "--insecure", self.repository],
            capture_output=True,
            text=True,
            check=False,
        )
        return listed.stdout.split() if listed.returncode == 0 else []

    def objects(self) -> list[str]:
        """Return the keys in the bucket."""
        if not self.bucket:
            return []
        pages = self.storage.get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    def live_functions(self) -> list[str]:
        """Return the names of functions whose lease has not ended."""
        answer = httpx.get(f"{self.url}/v1/functions", params={"page_size": 1000}, timeout=30)
        answer.raise_for_status()
        return [function["name"] for function in answer.json().get("functions", [])]

    def residue(self) -> dict[str, list[str]]:
        """Return what functions and builds have left, by kind; empty lists are left out."""
        found = {
            "functions": self.live_functions(),
            "objects": self.function_objects(),
            "images": self.images(),
            "contexts": self.objects(),
        }
        return {kind: names for kind, names in found.items() if names}

    def empty(self, seconds: float = END_SECONDS) -> None:
        """Delete all functions and wait until nothing of them or of their builds is left.

        Raises `Leftovers`.
        """
        for name in self.live_functions():
            answer = httpx.delete(f"{self.url}/v1/{name}", timeout=60)
            if answer.status_code not in (200, 404):
                raise Leftovers(f"{name} cannot be deleted: {answer.text[:300]}")
        left = until(self.residue, lambda residue: not residue, seconds)
        if left:
            raise Leftovers(f"{self.namespace}: left of its functions: {left}")


@contextmanager
def installed(
    driver: str, *, demo: bool = False, replicas: int = 1, prefix: str = "", **values: Any
) -> Iterator[Release]:
    """Install the chart of this checkout with this checkout's image; uninstall it afterwards.

    `values` lay over what the tests need. Raises `Leftovers` when the body has succeeded and
    something remains.
    """
    namespace = f"{prefix or os.environ.get('MAYFLY_TEST_PREFIX', 'mayfly-test')}-{driver[:6]}"
    namespace = f"{namespace}-{secrets.token_hex(3)}"
    with ExitStack() as stack:
        if driver == "knative":
            stack.enter_context(no_mesh())
        bucket = "" if demo else stack.enter_context(_bucket(namespace))
        url = "" if demo else stack.enter_context(database())
        port = _free_node_port()
        public = f"http://{_node_address()}:{port}"
        given = merged(_values(driver, namespace, public, port, replicas), values)
        given = merged(given, _demo() if demo else _outside(url, bucket))
        repository = f"{given['registry']['address']}/functions"
        release = Release(driver, namespace, public, repository, bucket, storage(), url, given)
        stack.callback(_remove, release)
        try:
            helm("install", namespace, given)
            _until_healthy(public)
        except BaseException:
            print(diagnosis(release))
            raise
        try:
            yield release
        except BaseException:
            print(diagnosis(release))
            raise
        release.empty()
    left = gone(release)
    if left:
        raise Leftovers(f"{namespace}: left of the release: {left}")


def _values(driver: str, namespace: str, public: str, port: int, replicas: int) -> dict[str, Any]:
    chosen = os.environ.get("MAYFLY_TEST_IMAGE") or image.quick()
    repository, _, tag = chosen.rpartition(":")
    env = os.environ
    small = {"replicas": replicas}
    return {
        "driver": driver,
        "image": {"repository": repository, "tag": tag},
        "registry": {"address": f"{env['MAYFLY_TEST_REGISTRY']}/{namespace}", "insecure": True},
        "baseImage": env["MAYFLY_TEST_PYTHON_IMAGE"],
        "basePython": image.python_version(env["MAYFLY_TEST_PYTHON_IMAGE"]),
        "goImage": env.get("MAYFLY_TEST_GO_IMAGE", ""),
        "goBaseImage": env["MAYFLY_TEST_STATIC_IMAGE"],
        "kanikoImage": env["MAYFLY_TEST_KANIKO_IMAGE"],
        "publicUrl": public,
        "index": {"variables": image.index_variables()},
        "gateway": small | {"service": {"type": "NodePort", "nodePort": port}, "shutdownDelay": 2},
        "deployer": small,
        # Builds end with their functions, so that what is left can be looked for at once.
        "builder": small | {"extraEnv": {"MAYFLY_BUILD_RETENTION": "5s"}},
        "janitor": small,
        "functions": {"idleStop": "5s", "imageLook": "3s"},
    }


def _outside(url: str, bucket: str) -> dict[str, Any]:
    env = os.environ
    return {
        "database": {"url": url},
        "bucket": {
            "name": bucket,
            "endpoint": env["MAYFLY_TEST_S3_ENDPOINT"],
            "region": env["AWS_REGION"],
            "pathStyle": True,
            "credentials": {
                "accessKeyId": env["AWS_ACCESS_KEY_ID"],
                "secretAccessKey": env["AWS_SECRET_ACCESS_KEY"],
            },
        },
    }


def _demo() -> dict[str, Any]:
    return {"demo": True, "image": {"demo": image.quick("demo")}}


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return one mapping laid over another, at every depth."""
    result = dict(below)
    for key, value in above.items():
        lower = result.get(key)
        both = isinstance(value, Mapping) and isinstance(lower, Mapping)
        result[key] = merged(lower, value) if both else value
    return result


def helm(verb: str, namespace: str, values: Mapping[str, Any]) -> str:
    """Run `helm install` or `helm upgrade` and wait until all is ready."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(values, file)
        file.flush()
        command = ["helm", verb, RELEASE, str(CHART), "-n", namespace, "-f", file.name]
        command += ["--create-namespace"] if verb == "install" else []
        command += ["--wait", "--timeout", f"{INSTALL_SECONDS}s"]
        return run(*command)


def run(*command: str, check: bool = True) -> str:
    """Run a command; return what it printed. Raises `AssertionError` with what it said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(command[:3])}: {done.stderr.strip()[-3000:]}")
    return done.stdout


def until(
    look: Callable[[], dict[str, list[str]]],
    done: Callable[[dict[str, list[str]]], bool],
    seconds: float,
) -> dict[str, list[str]]:
    """Look again until it is done or the time is over; return what was seen last."""
    deadline = time.monotonic() + seconds
    while not done(seen := look()) and time.monotonic() < deadline:
        time.sleep(0.3)
    return seen


def gone(release: Release, seconds: float = END_SECONDS) -> dict[str, list[str]]:
    """Return what is left of a removed release, once nothing is or after `seconds`."""
    namespaces = (release.namespace, release.functions, release.builds)

    def look() -> dict[str, list[str]]:
        there = run("kubectl", "get", "namespaces", "-o", "name").split()
        found = {
            "namespaces": [name for name in namespaces if f"namespace/{name}" in there],
            "labelled": _names("-A", f"{KINDS},{CLUSTER_KINDS}", f"{LABEL}={release.installation}"),
            "clusterwide": [
                line
                for line in run("kubectl", "get", CLUSTER_KINDS, "-o", "name").split()
                if release.namespace in line
            ],
        }
        return {kind: names for kind, names in found.items() if names}

    return until(look, lambda left: not left, seconds)


def _names(scope: str, kinds: str, selector: str) -> list[str]:
    listed = run("kubectl", "get", scope, kinds, "-l", selector, "-o", "name", "--ignore-not-found")
    return listed.split()


def _remove(release: Release) -> None:
    run("helm", "uninstall", RELEASE, "-n", release.namespace, "--wait", check=False)
    for name in (release.namespace, release.functions, release.builds):
        run("kubectl", "delete", "namespace", name, "--ignore-not-found", "--wait=false")


def diagnosis(release: Release) -> str:
    """Return what there is to see of a release that does not do what it should."""
    parts = [f"--- release {release.namespace} at {release.url}"]
    for namespace in (release.namespace, release.functions, release.builds):
        parts.append(run("kubectl", "get", "pods", "-n", namespace, "-o", "wide", check=False))
        events = ["kubectl", "get", "events", "-n", namespace, "--sort-by=.lastTimestamp"]
        lines = run(*events, "--field-selector=type=Warning", check=False).splitlines()
        parts += lines[-15:]
    pods = run("kubectl", "get", "pods", "-n", release.namespace, "-o", "name", check=False)
    for pod in pods.split():
        parts.append(f"--- {pod}")
        logs = ["kubectl", "logs", "-n", release.namespace, pod, "--all-containers", "--tail=25"]
        parts.append(run(*logs, check=False))
    return "\n".join(parts)


def _until_healthy(url: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    answer = "nothing"
    while time.monotonic() < deadline:
        try:
            response = httpx.get(f"{url}/healthz", timeout=5)
        except httpx.TransportError as error:
            answer = repr(error)
        else:
            if response.status_code == 200:
                return
            answer = f"{response.status_code} {response.text}"
        time.sleep(0.1)
    raise AssertionError(f"{url}/healthz last said {answer}")


@contextmanager
def _bucket(name: str) -> Iterator[str]:
    client = storage()
    client.create_bucket(Bucket=name)
    try:
        yield name
    finally:
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=name):
            for entry in page.get("Contents", []):
                client.delete_object(Bucket=name, Key=entry["Key"])
        client.delete_bucket(Bucket=name)


def storage() -> Any:
    """Return a client of the S3 server under test."""
    return boto3.client(
        "s3",
        endpoint_url=os.environ["MAYFLY_TEST_S3_ENDPOINT"],
        config=Config(s3={"addressing_style": "path"}),
    )


def _node_address() -> str:
    if given := os.environ.get("MAYFLY_TEST_NODE_ADDRESS"):
        return given
    path = "jsonpath={.items[0].status.addresses[?(@.type=='InternalIP')].address}"
    return run("kubectl", "get", "nodes", "-o", path).split()[0]


def _free_node_port() -> int:
    path = "jsonpath={.items[*].spec.ports[*].nodePort}"
    taken = set(run("kubectl", "get", "services", "-A", "-o", path).split())
    return random.choice([port for port in range(30000, 32768) if str(port) not in taken])


def main() -> None:
    """Install a release and keep it until a signal comes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--driver", default="knative", choices=("knative", "deployment"))
    parser.add_argument("--demo", action="store_true")
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--prefix", default="")
    chosen = parser.parse_args()
    # From the start: whatever is half done is removed as well. A shell's background ignores SIGINT.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    with installed(
        chosen.driver, demo=chosen.demo, replicas=chosen.replicas, prefix=chosen.prefix
    ) as release:
        print(f"{release.url}\nnamespace {release.namespace}", flush=True)
        try:
            signal.pause()
        except KeyboardInterrupt:
            print("removing", flush=True)


if __name__ == "__main__":
    main()
