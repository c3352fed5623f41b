"""How Knative reaches pods, as docs/kubernetes.md asks for where there is no service mesh."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

_NAMESPACE = "knative-serving"
_CONFIG = "config-network"
_MODE = "mesh-compatibility-mode"
_READY_SECONDS = 60


@contextmanager
def no_mesh() -> Iterator[None]:
    """Have Knative's activator ask pods by their own addresses only; set it back afterwards."""
    before = _mode()
    if before == "disabled":
        yield
        return
    _set("disabled")
    try:
        yield
    finally:
        _set(before)


def _mode() -> str | None:
    config = json.loads(_kubectl("get", "configmap", _CONFIG, "-o", "json"))
    return config["data"].get(_MODE)


def _set(mode: str | None) -> None:
    patch = json.dumps({"data": {_MODE: mode}})
    _kubectl("patch", "configmap", _CONFIG, "--type=merge", "-p", patch)
    # It is read at the activator's start only.
    _kubectl("rollout", "restart", "deployment/activator")
    _kubectl("rollout", "status", "deployment/activator", f"--timeout={_READY_SECONDS}s")


def _kubectl(*arguments: str) -> str:
    done = subprocess.run(
        ["kubectl", "-n", _NAMESPACE, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"kubectl {arguments[0]}: {done.stderr.strip()}"
    return done.stdout
