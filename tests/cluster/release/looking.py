"""What a release has in the world: objects of the cluster, images in the registry, stored keys."""

from __future__ import annotations

import functools
import json
import subprocess
import time
from collections.abc import Callable
from typing import Any, TypeVar

from tests.cluster.conftest import Cluster

Object = dict[str, Any]
T = TypeVar("T")

INSTALLATION, FUNCTION, UID = "mayfly.dev/installation", "mayfly.dev/function", "mayfly.dev/uid"
# Without labels of their owners, or not for anybody to list.
_UNLABELLED = ("events", "events.events.k8s.io", "endpoints")


def wait_until(look: Callable[[], T], seconds: float, what: str, every: float = 0.2) -> T:
    """Look until it returns something true. Raises `AssertionError` with what was seen last."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}; seen: {found!r}"
        time.sleep(every)
    return found


def wait_gone(look: Callable[[], list[str]], seconds: float, what: str) -> None:
    """Look until it returns nothing. Raises `AssertionError` with what is left."""
    deadline = time.monotonic() + seconds
    while left := look():
        assert time.monotonic() < deadline, f"{what}: left after {seconds} s: {left}"
        time.sleep(0.3)


class Looker:
    """Looks at the cluster, never at what Mayfly says of it."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def kubectl(self, *arguments: str, stdin: str = "", check: bool = True) -> str:
        """Run kubectl; return what it printed."""
        return self._cluster.kubectl(*arguments, stdin=stdin, check=check)

    @functools.cached_property
    def kinds(self) -> str:
        """All kinds of objects that somebody can make, for kubectl."""
        names = self.kubectl("api-resources", "--verbs=list,delete", "-o", "name").split()
        return ",".join(name for name in names if name not in _UNLABELLED)

    def everything(self, selector: str) -> list[str]:
        """Return every object of any kind in any namespace. Example: "mine/pod/fn-1"."""
        found = self.kubectl("get", self.kinds, "-A", "-l", selector, "-o", _NAMES)
        return sorted(line for line in found.splitlines() if line.strip())

    def mentioning(self, word: str) -> list[str]:
        """Return every object whose name or namespace has a word in it."""
        found = self.kubectl("get", self.kinds, "-A", "-o", _NAMES)
        return sorted(line for line in found.splitlines() if word in line)

    def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """Return an object; None where there is none."""
        found = self.kubectl("get", kind, name, "-n", namespace, "--ignore-not-found", "-o", "json")
        return json.loads(found) if found.strip() else None

    def list(self, kind: str, namespace: str, selector: str = "") -> list[Object]:
        """Return the objects of a kind, of all namespaces where none is given."""
        where = ["-n", namespace] if namespace else ["-A"]
        found = self.kubectl("get", kind, *where, "-l", selector, "-o", "json")
        return json.loads(found)["items"]

    def names(self, kind: str, namespace: str, selector: str = "") -> list[str]:
        """Return the names of the objects of a kind."""
        return [o["metadata"]["name"] for o in self.list(kind, namespace, selector)]

    # The registry

    def image_digest(self, reference: str) -> str:
        """Return the digest of an image's manifest, "" where the registry has none."""
        done = subprocess.run(
            ["crane", "digest", "--insecure", reference],
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    def copy_image(self, source: str, target: str) -> None:
        """Put an image under another name."""
        subprocess.run(
            ["crane", "copy", "--insecure", source, target],
            check=True,
            capture_output=True,
            timeout=60,
        )

    def delete_image(self, reference: str) -> None:
        """Remove a manifest, given by digest, from the registry."""
        subprocess.run(
            ["crane", "delete", "--insecure", reference],
            check=True,
            capture_output=True,
            timeout=30,
        )


_NAMES = "jsonpath={range .items[*]}{.metadata.namespace}/{.kind}/{.metadata.name}{'\\n'}{end}"
