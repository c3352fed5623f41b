"""Where a function's requests go: its route's addresses, names among them looked up in one place.

Envoy gets numbers alone. Were each function's cluster to hold the name of a shared ingress, each
would look it up on its own, again and again.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress

import structlog
from mayfly.v1.route_pb2 import Route

from libs.rpc.addresses import Address, parse

log = structlog.get_logger()

# As often as Envoy looks names up by default, and as long as CoreDNS says that an answer holds:
# https://coredns.io/plugins/kubernetes/
REFRESH_SECONDS = 5.0

# Returns the numeric addresses of a host name; raises `OSError`.
LookUp = Callable[[str], Sequence[str]]


def addresses(route: Route) -> list[Address]:
    """Return where a function listens; empty when it cannot be reached.

    Raises `ValueError` for an endpoint that is no address.
    """
    if not route.endpoint:
        return []
    return [parse(text) for text in dict.fromkeys((route.endpoint, *route.endpoints))]


def look_up(host: str) -> list[str]:
    """Return the numeric addresses of a host name. Raises `OSError`."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return sorted({str(address[0]) for *_, address in found})


class Names:
    """What the host names among endpoints stand for, looked up again and again.

    `changed` is called with a name whose addresses are new. A name that cannot be looked up keeps
    those it had.
    """

    def __init__(self, look_up: LookUp = look_up, refresh_seconds: float = REFRESH_SECONDS) -> None:
        self._look_up = look_up
        self._refresh_seconds = refresh_seconds
        self._known: dict[str, tuple[str, ...]] = {}
        self._new = asyncio.Event()
        self.changed: Callable[[str], None] = lambda _: None

    def resolve(self, wanted: Sequence[Address]) -> list[Address]:
        """Return numeric addresses; a name that is not known yet has none, until `changed`."""
        found: list[Address] = []
        for address in wanted:
            if not address.is_name:
                found.append(address)
                continue
            if address.host not in self._known:
                self._known[address.host] = ()
                self._new.set()
            found += [Address(host=ip, port=address.port) for ip in self._known[address.host]]
        return found

    async def run(self) -> None:
        """Look up; ends only when it is cancelled."""
        while True:
            self._new.clear()
            for host in list(self._known):
                await self._refresh(host)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._refresh_seconds if self._known else None):
                    await self._new.wait()

    async def _refresh(self, host: str) -> None:
        try:
            found = tuple(await asyncio.to_thread(self._look_up, host))
        except OSError as error:
            log.warning("endpoint_name_unknown", host=host, detail=str(error))
            return
        if self._known[host] != found:
            self._known[host] = found
            self.changed(host)
