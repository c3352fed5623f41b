"""A real cluster, described by variables (docs/kubernetes.md); without them these tests skip."""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

_NEEDED = (
    "KUBECONFIG",
    "MAYFLY_TEST_REGISTRY",
    "MAYFLY_TEST_S3_ENDPOINT",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_REGION",
    "MAYFLY_TEST_KNATIVE_INGRESS",
    "MAYFLY_TEST_KNATIVE_DOMAIN",
    "MAYFLY_TEST_PYTHON_IMAGE",
    "MAYFLY_TEST_STATIC_IMAGE",
    "MAYFLY_TEST_KANIKO_IMAGE",
)


@dataclass(frozen=True)
class Cluster:
    """What the variables say. Addresses are "host:port"; images are references."""

    kubeconfig: str
    registry: str
    s3_endpoint: str
    s3_region: str
    knative_ingress: str
    knative_domain: str
    python_image: str
    static_image: str
    kaniko_image: str
    go_image: str
    """Empty where the cluster has none."""

    def kubectl(self, *arguments: str, stdin: str = "", check: bool = True) -> str:
        """Run kubectl; return what it printed."""
        done = subprocess.run(
            ["kubectl", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    """The cluster under test; the test skips where there is none."""
    missing = [name for name in _NEEDED if not os.environ.get(name)]
    if missing:
        pytest.skip(f"no cluster to test with: {', '.join(missing)} not set")
    env = os.environ
    return Cluster(
        kubeconfig=env["KUBECONFIG"],
        registry=env["MAYFLY_TEST_REGISTRY"],
        s3_endpoint=env["MAYFLY_TEST_S3_ENDPOINT"],
        s3_region=env["AWS_REGION"],
        knative_ingress=env["MAYFLY_TEST_KNATIVE_INGRESS"],
        knative_domain=env["MAYFLY_TEST_KNATIVE_DOMAIN"],
        python_image=env["MAYFLY_TEST_PYTHON_IMAGE"],
        static_image=env["MAYFLY_TEST_STATIC_IMAGE"],
        kaniko_image=env["MAYFLY_TEST_KANIKO_IMAGE"],
        go_image=env.get("MAYFLY_TEST_GO_IMAGE", ""),
    )


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A namespace of the test's own."""
    name = f"mayfly-test-{secrets.token_hex(4)}"
    cluster.kubectl("create", "namespace", name)
    try:
        yield name
    finally:
        cluster.kubectl("delete", "namespace", name, "--wait=false")
