"""Two connections joined into one: bytes both ways, bounded memory, either end closing both."""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from collections.abc import Callable
from typing import cast

from libs.rpc.addresses import Address

# What a client may send ahead while its request is held; then it is not read further.
AHEAD_BYTES = 256 * 1024
# What is gone from the network does not refuse: it says nothing.
CONNECT_SECONDS = 1.0


class Side(asyncio.Protocol):
    """One end. Its bytes are kept until `send_on`; then they go to the end it is joined with."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport | None = None
        self.received = bytearray()
        self.last_byte = 0.0
        self.began: asyncio.Future[None] = loop.create_future()
        self.lost: asyncio.Future[None] = loop.create_future()
        self._other: Side | None = None
        self._sends_on = False
        self._discards = False
        self._paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.last_byte = time.monotonic()
        if self._discards:
            return
        if self._other is not None and self._sends_on:
            self._other.write(data)
            return
        self.received += data
        if len(self.received) > AHEAD_BYTES:
            self._pause()
        self.check_began()

    def check_began(self) -> None:
        """Note that what this end has to say has begun."""
        if not self.began.done():
            self.began.set_result(None)

    def eof_received(self) -> bool:
        return False  # neither Envoy nor a server half-closes: its end is gone

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.lost.done():
            self.lost.set_result(None)
        if self._other is not None and self._sends_on:
            self._other.close()

    def pause_writing(self) -> None:
        if self._other is not None:
            self._other._pause()

    def resume_writing(self) -> None:
        if self._other is not None:
            self._other._resume()

    def write(self, data: bytes) -> None:
        """Send, unless the connection has gone."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)

    def close(self) -> None:
        """Close once everything is sent."""
        if self.transport is not None:
            self.transport.close()

    def abort(self) -> None:
        """Close at once."""
        if self.transport is not None:
            self.transport.abort()

    def join(self, other: Side) -> None:
        """Make `other` the other end: each is read no faster than the other takes it."""
        self._other, other._other = other, self

    def send_on(self) -> None:
        """From now on hand what comes to the other end, beginning with what has been kept."""
        assert self._other is not None
        self._sends_on = True
        if self.received:
            self._other.write(bytes(self.received))
            self.received.clear()
        self._resume()
        if self.lost.done():
            self._other.close()

    def pass_on(self, size: int) -> None:
        """Hand the first `size` of the kept bytes to the other end, and keep the rest."""
        if self._other is not None:
            self._other.write(bytes(self.received[:size]))
        del self.received[:size]

    def discard(self) -> None:
        """From now on read and forget what comes."""
        self._other = None
        self._discards = True
        self.received.clear()
        self._resume()

    def _pause(self) -> None:
        if self.transport is not None and not self._paused and not self.transport.is_closing():
            self._paused = True
            self.transport.pause_reading()

    def _resume(self) -> None:
        if self.transport is not None and self._paused and not self.transport.is_closing():
            self._paused = False
            self.transport.resume_reading()


async def connect(address: Address, make: Callable[[], Side]) -> Side:
    """Return a connection to `address`.

    Raises `OSError`; `BlockingIOError` is one of them, for a unix socket whose backlog is full.
    """
    loop = asyncio.get_running_loop()
    if not address.path:
        async with asyncio.timeout(CONNECT_SECONDS):
            _, side = await loop.create_connection(make, address.host, address.port)
        return side
    # Not the loop's own connect: it takes EAGAIN, which means a full backlog here (unix(7)), for
    # a connection in progress.
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        made.connect(address.path)
    except OSError:
        made.close()
        raise
    _, side = await loop.create_unix_connection(make, sock=made)
    return side


def is_transient(error: OSError) -> bool:
    """Whether connecting may work a moment later.

    A full backlog, a server that restarts, a machine that is gone and is about to be replaced. An
    error without a number is of several addresses, each with its own.
    """
    return isinstance(error, (TimeoutError, socket.gaierror)) or error.errno in _TRANSIENT


_TRANSIENT = (
    None,
    errno.EAGAIN,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.ENOENT,
    errno.ETIMEDOUT,
)
