"""The chart as `helm template` renders it; no cluster is needed."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "mayfly"
Manifest = dict[str, Any]
Render = Callable[..., list[Manifest]]

# What a release needs at least.
NEEDED: dict[str, Any] = {
    "database": {"url": "postgresql://u:p@db.example/mayfly"},
    "registry": {"address": "registry.example/mayfly"},
    "bucket": {"name": "contexts", "endpoint": "https://s3.example"},
}


class Refused(Exception):
    """helm did not render; the message is what it said."""


def template(values: dict[str, Any]) -> str:
    """Return what `helm template` makes of values. Raises `Refused`."""
    command = ["helm", "template", "rel", str(CHART), "--namespace", "sys"]
    command += ["--kube-version", "1.30.0", "-f", "-"]
    done = subprocess.run(
        command, input=json.dumps(values), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Refused(done.stderr)
    return done.stdout


@pytest.fixture(scope="session")
def render() -> Render:
    """Render the chart with values laid over what it needs; skips where there is no helm."""
    if shutil.which("helm") is None:
        pytest.skip("helm is not on PATH")

    def rendered(**values: Any) -> list[Manifest]:
        documents = yaml.safe_load_all(template(NEEDED | values))
        return [document for document in documents if document]

    return rendered
