"""Questions to Envoy's admin interface, on a unix socket that only this user reaches."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx

from libs.rpc.addresses import Address

TIMEOUT_SECONDS = 2.0  # as long as the deployer waits for an inventory
# The mask leaves the names alone: a dump of everything has about 2 kB a function.
_CLUSTERS = "/config_dump?resource=dynamic_active_clusters&mask=cluster.name"
_REQUESTS = "/stats?filter=^http.public.downstream_rq_active$"
DRAIN_LOOK_SECONDS = 0.05


class AdminError(Exception):
    """Envoy does not answer, or not as expected."""


async def get(admin: Address, path: str) -> bytes:
    """Return the body of a GET. Raises `AdminError`."""
    return await _ask(admin, "GET", path)


async def _ask(admin: Address, verb: str, path: str) -> bytes:
    transport = httpx.AsyncHTTPTransport(uds=admin.path)
    async with httpx.AsyncClient(transport=transport, timeout=TIMEOUT_SECONDS) as client:
        try:
            answer = await client.request(verb, f"http://admin{path}")
            answer.raise_for_status()
        except httpx.HTTPError as error:
            raise AdminError(f"Envoy's admin interface: {error}") from error
        return answer.content


async def function_clusters(admin: Address) -> list[str]:
    """Return the ids of functions that Envoy has clusters for now. Raises `AdminError`."""
    return names(json.loads(await get(admin, _CLUSTERS)))


async def discourage(admin: Address) -> None:
    """End each connection after its next response, which says so. Raises `AdminError`.

    `Connection: close` in HTTP/1.1 (RFC 9112, 9.6), GOAWAY in HTTP/2 (RFC 9113, 6.8).
    """
    await _ask(admin, "POST", "/healthcheck/fail")


async def drain(admin: Address, seconds: float) -> int:
    """Take no new connections, close the others after their requests; wait for those, bounded.

    Returns how many requests are still open after `seconds`. Raises `AdminError`.
    """
    await discourage(admin)
    await _ask(admin, "POST", "/drain_listeners")
    deadline = asyncio.get_running_loop().time() + seconds
    while (left := open_requests(await get(admin, _REQUESTS))) > 0:
        if asyncio.get_running_loop().time() > deadline:
            break
        await asyncio.sleep(DRAIN_LOOK_SECONDS)
    return left


def open_requests(stats: bytes) -> int:
    """Return the number in the one statistic that was asked for, as `name: number` lines."""
    return sum(int(line.rpartition(b":")[2]) for line in stats.splitlines() if line.strip())


def names(dump: dict[str, Any]) -> list[str]:
    """Return the names of functions' clusters in a config dump."""
    configs: list[dict[str, Any]] = dump.get("configs", [])
    found = (config.get("cluster", {}).get("name", "") for config in configs)
    return sorted(name for name in found if name and not name.startswith("_"))
