"""The backend layers as the builder runs it: real registry, base image, pods and PostgreSQL."""

from __future__ import annotations

import asyncio
import io
import json
import secrets
import shutil
import socket
import subprocess
import tarfile
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio
from mayfly.v1.build_pb2 import Artefact, Build, ListRuntimesRequest, ReleaseBuildRequest
from mayfly.v1.reclaimer_pb2 import ListResourcesRequest

from libs.registry import Repository, Transport
from services.builder.config import Settings
from tests.builder.conftest import (  # noqa: F401 - fixtures
    Replica,
    data_dir,
    handler_with,
    index,
    running,
    settings,
)
from tests.builder.index import Index
from tests.cluster.conftest import Cluster

pytestmark = [pytest.mark.needs_cluster, pytest.mark.timeout(110)]


@dataclass
class Registry:
    """Repositories of the test's own."""

    prefix: str
    functions: Repository
    environments: Repository

    async def image(self, digest: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Manifest and configuration of an image."""
        manifest = await self.functions.manifest(digest)
        assert manifest is not None
        config = await self.functions.blob(manifest.content["config"]["digest"])
        return manifest.content, json.loads(config)


@pytest_asyncio.fixture
async def registry(cluster: Cluster) -> AsyncIterator[Registry]:
    """Two empty repositories."""
    prefix = f"d-layers/{secrets.token_hex(4)}"
    transport = Transport(cluster.registry, insecure=True, auth=None, patience=5)
    functions = Repository(transport, f"{prefix}/functions")
    environments = Repository(transport, f"{prefix}/environments")
    yield Registry(f"{cluster.registry}/{prefix}", functions, environments)
    for repository in (functions, environments):
        for tag in await repository.tags():
            if digest := await repository.manifest_digest(tag):
                await repository.delete_manifest(digest)
    await transport.close()


@pytest.fixture
def layering(
    cluster: Cluster,
    registry: Registry,
    settings: Callable[..., Settings],  # noqa: F811
) -> Callable[..., Settings]:
    """Settings of a builder with this backend alone."""

    def make(**given: Any) -> Settings:
        defaults: dict[str, Any] = {
            "build_backends": "layers",
            "registry": registry.prefix,
            "registry_insecure": True,
            "base_image": cluster.python_image,
        }
        return settings(**(defaults | given))

    return make


@pytest_asyncio.fixture
async def builder(layering: Callable[..., Settings]) -> AsyncIterator[Replica]:
    """A builder."""
    async with running(layering()) as one:
        yield one


def digest_of(build: Build) -> str:
    """The digest of a build's image."""
    assert build.state == Build.STATE_SUCCEEDED, build.failure
    return build.artefact.image.partition("@")[2]


def archive(**files: str) -> bytes:
    """A tar.gz; names have "__" for a dot."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w:gz") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(name.replace("__", "."))
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
    return whole.getvalue()


POD = """
apiVersion: v1
kind: Pod
metadata: {name: fn}
spec:
  restartPolicy: Never
  automountServiceAccountToken: false
  containers:
  - name: fn
    image: %s
    ports: [{containerPort: 8080}]
    securityContext:
      runAsNonRoot: true
      readOnlyRootFilesystem: true
      allowPrivilegeEscalation: false
      capabilities: {drop: [ALL]}
    readinessProbe:
      periodSeconds: 1
      httpGet: {path: %s, port: 8080, httpHeaders: [{name: mayfly-probe, value: "1"}]}
"""


def answer_of(cluster: Cluster, namespace: str, image: str, probe: str = "/readyz") -> str:
    """Run an image as a pod until it is ready, and return what it answers to GET /?name=you."""
    cluster.kubectl("apply", "-n", namespace, "-f", "-", stdin=POD % (image, probe))
    cluster.kubectl("wait", "-n", namespace, "--for=condition=Ready", "--timeout=60s", "pod/fn")
    address = cluster.kubectl("get", "-n", namespace, "pod/fn", "-o=jsonpath={.status.podIP}")
    with socket.create_connection((address, 8080), 10) as caller:
        caller.sendall(b"GET /?name=you HTTP/1.0\r\nhost: fn\r\n\r\n")
        whole = b""
        while part := caller.recv(65536):
            whole += part
    return whole.partition(b"\r\n\r\n")[2].decode()


HANDLER = """# /// script
# dependencies = ["alpha"]
# ///
import os
import sys
import alpha

def handler(event, ctx):
    cached = os.path.exists(alpha.__cached__)
    return [event.query["name"], alpha.VERSION, cached, os.getuid(), sys.prefix]
"""


async def test_a_handler_runs_in_the_cluster_with_its_requirements(
    cluster: Cluster,
    namespace: str,
    index: Index,  # noqa: F811
    builder: Replica,
    registry: Registry,
) -> None:
    index.add("alpha")
    build = await builder.create(handler=HANDLER, uid="a")
    digest = digest_of(build)
    artefact = build.artefact
    assert artefact.kind == Artefact.KIND_PYTHON_HANDLER
    assert artefact.image == f"{registry.prefix}/functions@{digest}"
    assert (artefact.entry, artefact.directory) == ("handler.py", "")
    assert (
        build.steps[-1].detail
        == f"environment {artefact.environment_digest[:6]}, 1 package installed"
    )
    answer = await asyncio.to_thread(answer_of, cluster, namespace, artefact.image)
    name, version, cached, uid, prefix = json.loads(answer)
    assert (name, version, uid, prefix) == ("you", "1.0", 65532, "/mayfly/env")
    assert cached
    accepted(artefact.image)
    (runtime,) = (await builder.builds.ListRuntimes(ListRuntimesRequest())).runtimes
    assert (runtime.name, runtime.available, len(runtime.versions)) == ("python", True, 1)


async def test_a_script_runs_in_the_cluster(
    cluster: Cluster,
    namespace: str,
    index: Index,  # noqa: F811
    builder: Replica,
) -> None:
    script = """# /// script
# requires-python = ">=3.11"
# ///
import http.server, os

class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(os.getcwd().encode())

http.server.HTTPServer(("", int(os.environ["PORT"])), Answer).serve_forever()
"""
    build = await builder.create(script=script, uid="a")
    digest_of(build)
    image = build.artefact.image
    answer = await asyncio.to_thread(answer_of, cluster, namespace, image, "/")
    assert answer == "/function"


def accepted(image: str) -> None:
    """Have other programs look at an image, those that are installed."""
    if skopeo := shutil.which("skopeo"):
        command = [skopeo, "inspect", "--tls-verify=false", f"docker://{image}"]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
    if crane := shutil.which("crane"):
        command = [crane, "validate", "--insecure", "--remote", image]
        subprocess.run(command, check=True, capture_output=True, timeout=60)


async def test_the_same_input_is_the_same_image_also_when_all_is_made_anew(
    index: Index,  # noqa: F811
    builder: Replica,
    registry: Registry,
) -> None:
    index.add("alpha")
    first = await builder.create(handler=HANDLER, uid="a")
    digest = digest_of(first)
    release = ReleaseBuildRequest(name=first.name, function_uid="a")
    await builder.builds.ReleaseBuild(release)
    assert await registry.functions.tags() == []
    assert await registry.functions.manifest_digest(digest) is None
    # The layer of requirements stays for its retention; without it, it is made again.
    (tag,) = await registry.environments.tags()
    kept = await registry.environments.manifest_digest(tag)
    assert kept is not None
    await registry.environments.delete_manifest(kept)
    again = await builder.create(handler=HANDLER, uid="b")
    assert digest_of(again) == digest
    assert "1 package installed" in again.steps[-1].detail


async def test_a_layer_of_requirements_is_shared_and_installed_once(
    index: Index,  # noqa: F811
    builder: Replica,
    registry: Registry,
) -> None:
    index.add("alpha")
    one = await builder.create(handler=HANDLER, uid="a")
    asked = len(index.requests)
    other = await builder.create(handler=HANDLER + "# other\n", uid="b")
    assert digest_of(one) != digest_of(other)
    assert "shared with 1 function" in other.steps[-1].detail
    assert len(index.requests) == asked
    first, _ = await registry.image(digest_of(one))
    second, _ = await registry.image(digest_of(other))
    assert first["layers"][:-1] == second["layers"][:-1]
    assert first["layers"][-1] != second["layers"][-1]

    answers = [each async for each in builder.reclaimer.ListResources(ListResourcesRequest())]
    resources = [resource for answer in answers for resource in answer.resources]
    found = {(each.type, each.owner, each.orphan) for each in resources if each.type != "hold"}
    assert {("image", one.name, False), ("image", other.name, False)} < found
    assert sorted(kind for kind, _, _ in found) == ["environment", "image", "image"]


async def test_what_layers_cannot_do_names_kaniko(
    index: Index,  # noqa: F811
    builder: Replica,
    registry: Registry,
) -> None:
    index.add_sdist("alpha", "")
    sdist = await builder.create(handler=HANDLER, uid="a")
    docker = await builder.create(
        runtime="python", archive=archive(Dockerfile="FROM scratch\n"), uid="b"
    )
    for build in (sdist, docker):
        assert build.state == Build.STATE_FAILED
        assert build.failure.reason == "SOURCE_UNSUPPORTED", build.failure
        assert "kaniko" in build.failure.message
    old = handler_with().replace(
        "# dependencies = []", '# dependencies = []\n# requires-python = "<3.5"'
    )
    python = await builder.create(handler=old, uid="c")
    assert python.failure.reason == "PYTHON_UNSATISFIABLE"
    assert await registry.functions.tags() == []
    assert await registry.environments.tags() == []


async def test_a_registry_that_is_away_is_tried_until_the_deadline_and_then_named(
    index: Index,  # noqa: F811
    layering: Callable[..., Settings],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    given = layering(
        registry=f"{address}/x",
        base_image=f"{address}/x/base:1",
        base_python="3.13",
        build_timeout="8s",
    )
    async with running(given) as one:
        build = await one.create(handler=handler_with(), uid="a")
    assert build.failure.reason == "REGISTRY_UNREACHABLE", build.failure
    assert address in build.failure.message
    assert any("trying again" in line for line in build.failure.log_tail)


async def test_first_images_of_a_repository_come_many_at_once(
    layering: Callable[..., Settings],
) -> None:
    """Registries on files do not write at once what a repository has: pushes see it half done."""
    async with AsyncExitStack() as stack:
        replicas = [await stack.enter_async_context(running(layering())) for _ in range(4)]
        builds = await asyncio.gather(
            *(
                replica.create(
                    handler=handler_with(more=f"# {number}, {name}\n"), uid=f"{name}{number}"
                )
                for name, replica in enumerate(replicas)
                for number in range(4)
            )
        )
    assert [build.failure for build in builds if build.state != Build.STATE_SUCCEEDED] == []


async def test_a_removed_image_leaves_that_of_another_build_with_its_layers(
    index: Index,  # noqa: F811
    builder: Replica,
    registry: Registry,
) -> None:
    one = await builder.create(handler=handler_with(), uid="a")
    other = await builder.create(handler=handler_with(more="# other\n"), uid="b")
    release = ReleaseBuildRequest(name=one.name, function_uid="a")
    await builder.builds.ReleaseBuild(release)
    assert await registry.functions.manifest_digest(digest_of(one)) is None
    manifest, _ = await registry.image(digest_of(other))
    for layer in manifest["layers"]:
        assert await registry.functions.blob_exists(layer["digest"])
