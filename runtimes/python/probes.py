"""How a cluster asks a container for its health without the handler seeing it.

A probe is a GET of one of two paths with a header of our own, whatever its value; without the
header both paths are the handler's, as everywhere else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

HEADER = "mayfly-probe"
HEALTH_PATH = "/healthz"
"""200 as long as the process answers at all: for liveness."""
READY_PATH = "/readyz"
"""200 from the handler's import until SIGTERM, 503 afterwards: for readiness and startup."""


def is_probe(method: str, target: str, headers: Mapping[str, str]) -> bool:
    """Whether a request is a probe. `headers` have lower-case names."""
    return HEADER in headers and method == "GET" and target in (HEALTH_PATH, READY_PATH)


def answer(target: str, draining: bool) -> tuple[int, bytes]:
    """Status and JSON body for a probe."""
    if target == READY_PATH and draining:
        return 503, json.dumps({"status": "draining"}).encode()
    return 200, json.dumps({"status": "ok"}).encode()
