"""Which function a request is for: the same rule as the scripts in `bootstrap`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_LABEL = re.compile(r"[a-z0-9][a-z0-9-]*")
_BY_PATH = re.compile(r"/f/([^/?]*)")
_PORT = re.compile(r":\d*$")


@dataclass(frozen=True)
class Target:
    """A function's id, and the prefix that was taken off the path; empty with a host of its own."""

    function_id: str
    prefix: str = ""


def target_of(host: str, path: str, domains: Sequence[str]) -> Target | None:
    """Return what a request with this Host and original path is for; None for no function."""
    name = _PORT.sub("", host.lower())
    if label := _label_below(name, domains):
        return Target(label) if _LABEL.fullmatch(label) else None
    found = _BY_PATH.match(path)
    if found is None or not _LABEL.fullmatch(found[1]):
        return None
    return Target(found[1], f"/f/{found[1]}")


def _label_below(host: str, domains: Sequence[str]) -> str:
    for domain in domains:
        if host.endswith(f".{domain}"):
            return host.removesuffix(f".{domain}")
    return ""
