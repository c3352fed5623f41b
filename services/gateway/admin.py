"""Questions to Envoy's admin interface, on a unix socket that only this user reaches."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from services.gateway.addresses import Address

TIMEOUT_SECONDS = 10.0
_CLUSTERS = "/config_dump?resource=dynamic_active_clusters&mask=cluster.name"


class AdminError(Exception):
    """Envoy does not answer, or not as expected."""


async def get(admin: Address, path: str) -> bytes:
    """Return the body of a GET. Raises `AdminError`."""
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            reader, writer = await asyncio.open_unix_connection(admin.path, limit=2**26)
            try:
                # HTTP/1.0: the answer is not chunked and ends with the connection.
                writer.write(f"GET {path} HTTP/1.0\r\nhost: admin\r\n\r\n".encode())
                answer = await reader.read(-1)
            finally:
                writer.close()
    except (OSError, TimeoutError) as error:
        raise AdminError(f"Envoy's admin interface does not answer: {error}") from error
    head, _, content = answer.partition(b"\r\n\r\n")
    if b" 200 " not in head.split(b"\r\n", 1)[0] + b" ":
        raise AdminError(f"{path}: {head[:200]!r}")
    return content


async def function_clusters(admin: Address) -> list[str]:
    """Return the ids of functions that Envoy has clusters for now. Raises `AdminError`."""
    return names(json.loads(await get(admin, _CLUSTERS)))


def names(dump: dict[str, Any]) -> list[str]:
    """Return the names of the clusters in a config dump."""
    configs: list[dict[str, Any]] = dump.get("configs", [])
    found = (config.get("cluster", {}).get("name", "") for config in configs)
    return sorted(name for name in found if name and not name.startswith("_"))
