"""The suite that every Mayfly passes, against a release."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

import pytest

from tests.cluster.conftest import Cluster
from tests.cluster.release.installed import ROOT, Release

SECONDS = 1500
# What a function is isolated by is another thing where its kernel is gVisor's.
UNDER_GVISOR = ("test_handlers.py", "test_isolation.py")
# What the sandbox's own kernel allows is nothing of the node's.
NOT_UNDER_GVISOR = "not the_kernel_refuses"


def conformance(release: Release, arguments: Sequence[str]) -> None:
    """Run the suite as a process of its own: it knows no cluster, only a URL."""
    command = [sys.executable, "-m", "pytest", "-q", "--url", release.url]
    # Most of a test's time is a pod's start, and much of that is waiting.
    command += ["-n", "2", "--dist", "worksteal"]
    done = subprocess.run(
        [*command, "--driver", release.driver, "--durations", "10", *arguments],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if not k.startswith("MAYFLY_")},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    print(done.stdout[-20_000:])
    summary = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    assert done.returncode == 0, "\n".join(summary) or done.stderr[-2000:]


@pytest.mark.timeout(SECONDS + 60)
def test_the_suite_passes(release: Release) -> None:
    conformance(release, ["tests/conformance"])


@pytest.mark.timeout(SECONDS + 60)
def test_a_part_of_it_passes_under_gvisor(cluster: Cluster, release: Release) -> None:
    if "gvisor" not in cluster.kubectl("get", "runtimeclasses", "-o", "name"):
        pytest.skip("the cluster has no RuntimeClass gvisor")
    release.upgrade(functions={"runtimeClassName": "gvisor"})
    try:
        files = [f"tests/conformance/{name}" for name in UNDER_GVISOR]
        conformance(release, [*files, "-k", NOT_UNDER_GVISOR])
    finally:
        release.upgrade(functions={"runtimeClassName": ""})
