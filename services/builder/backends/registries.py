"""The registries that this Mayfly speaks to: its own, and those that it has credentials for."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast

from libs.registry import RegistryError, Repository, Transport, parse
from services.builder.backends.images import failure_of
from services.builder.failures import BuildFailed

_HUB = "docker.io"
_PATIENCE_SECONDS = 20.0


class Registries:
    """Connections to registries, one a host, ended with `stack`."""

    def __init__(
        self, own: str, *, insecure: bool, auth: Path | None, stack: AsyncExitStack
    ) -> None:
        """`own` is "host:port/prefix"; only that host is spoken to in plain HTTP, if `insecure`."""
        self._own = own.partition("/")[0]
        self._prefix = own.partition("/")[2]
        self._insecure = insecure
        self._auth = auth
        self._stack = stack
        self._transports: dict[tuple[str, float], Transport] = {}

    def functions(self) -> Repository:
        """Return the repository of functions' images."""
        name = f"{self._prefix}/functions" if self._prefix else "functions"
        return Repository(self._transport(self._own, _PATIENCE_SECONDS), name)

    def repository(self, image: str, patience: float = _PATIENCE_SECONDS) -> tuple[Repository, str]:
        """Return an image's repository and its tag or digest."""
        reference = parse(image)
        transport = self._transport(reference.api_host, patience)
        return Repository(transport, reference.repository), reference.reference

    def may_ask(self) -> frozenset[str]:
        """Return the hosts that may be asked for images that sources name."""
        return frozenset({self._own, *_hosts(self._auth)})

    async def digest(self, image: str) -> str:
        """Return the digest of "host/path:tag". Raises `BuildFailed`."""
        repository, reference = self.repository(image, patience=0.0)
        try:
            digest = await repository.manifest_digest(reference)
        except RegistryError as error:
            raise failure_of(error) from error
        if digest is None:
            raise BuildFailed(
                "INVALID_SOURCE", f"the registry has no {image}", "check its name, and push it"
            )
        return digest

    def _transport(self, host: str, patience: float) -> Transport:
        known = self._transports.get((host, patience))
        if known is None:
            insecure = self._insecure and host == self._own
            known = Transport(host, insecure=insecure, auth=self._auth, patience=patience)
            self._transports[host, patience] = known
            self._stack.push_async_callback(known.close)
        return known


def _hosts(auth: Path | None) -> set[str]:
    """The hosts that a Docker config.json has credentials for; none where it cannot be read."""
    try:
        content: Any = json.loads(auth.read_bytes()) if auth else {}
    except (OSError, ValueError):
        return set()  # whoever pushes says so
    auths = cast("dict[str, Any]", content.get("auths") or {})
    named = (name.removeprefix("https://").removeprefix("http://") for name in auths)
    hosts = {name.partition("/")[0] for name in named}
    return {_HUB if host in ("index.docker.io", "registry-1.docker.io") else host for host in hosts}
