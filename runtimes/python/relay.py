"""Carries connections to one's own addresses on to a port that is open on loopback only.

One thread for all of them. What one side sends is held, up to `ROOM` bytes, until the other takes
it; the end of one direction is passed on and the other goes on (RFC 9293, 3.6); a reset is one for
both sides.
"""

from __future__ import annotations

import selectors
import socket
import struct
import sys
import threading
from collections.abc import Sequence

ROOM = 256 * 1024
_PIECE = 64 * 1024
_BACKLOG = 1024
_RESET = struct.pack("ii", 1, 0)
_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class _Side:
    """One socket of a pair. pending: what it is still to be sent. ended: nothing more comes of it.
    closing: it has been told that nothing more comes."""

    __slots__ = ("closing", "connected", "ended", "other", "pending", "socket")

    def __init__(self, own: socket.socket, connected: bool) -> None:
        self.socket = own
        self.connected = connected
        self.pending = bytearray()
        self.ended = False
        self.closing = False
        self.other: _Side = self

    def interest(self) -> int:
        """What is waited for."""
        if not self.connected:
            return _WRITE
        reads = not self.ended and self.other.connected and len(self.other.pending) < ROOM
        return (_READ if reads else 0) | (_WRITE if self.pending else 0)


class Relay:
    """Listens at `port` of each of `addresses` and carries on to that port of `target`.

    Raises OSError where it cannot listen.
    """

    def __init__(self, addresses: Sequence[str], port: int, target: str) -> None:
        self._target = (target, port)
        self._family = _family(target)
        self._selector = selectors.DefaultSelector()
        self._listeners = [self._listen(address, port) for address in addresses]
        self._waker, self._awoken = socket.socketpair()
        self._selector.register(self._awoken, _READ)
        self._pairs = 0
        self._accepts = True
        self._finishing = False
        self._thread = threading.Thread(target=self._run, name="mayfly-relay", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def finish(self, seconds: float) -> None:
        """Accept no more; wait until what has been taken is delivered, for `seconds` at most."""
        self._waker.send(b"\0")
        self._thread.join(seconds)

    def _listen(self, address: str, port: int) -> socket.socket:
        listener = socket.create_server((address, port), family=_family(address), backlog=_BACKLOG)
        listener.setblocking(False)
        self._selector.register(listener, _READ)
        return listener

    def _run(self) -> None:
        while self._pairs or not self._finishing:
            for key, events in self._selector.select():
                side = key.data
                if isinstance(side, _Side):
                    # The other one of the pair may have closed both a moment ago.
                    if side.socket.fileno() >= 0:
                        self._carry(side, events)
                elif key.fileobj is self._awoken:
                    self._awoken.recv(1)
                    self._finishing = True
                    self._accept_no_more()
                else:
                    self._accept(key.fileobj)

    def _accept(self, listener: object) -> None:
        assert isinstance(listener, socket.socket)
        try:
            accepted, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            # Too many open files: who waits is taken when one of those has ended.
            sys.stderr.write(f"mayfly: a connection is not taken: {error}\n")
            if self._pairs:
                self._accept_no_more()
            return
        try:
            onward = socket.socket(self._family, socket.SOCK_STREAM)
        except OSError:
            _reset(accepted)
            return
        caller, script = _Side(accepted, True), _Side(onward, False)
        caller.other, script.other = script, caller
        for side in (caller, script):
            side.socket.setblocking(False)
            side.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        onward.connect_ex(self._target)
        self._pairs += 1
        for side in (caller, script):
            self._watch(side)

    def _accept_no_more(self) -> None:
        if self._accepts:
            self._accepts = False
            for listener in self._listeners:
                self._selector.unregister(listener)

    def _accept_again(self) -> None:
        if not self._accepts and not self._finishing:
            self._accepts = True
            for listener in self._listeners:
                self._selector.register(listener, _READ)

    def _carry(self, side: _Side, events: int) -> None:
        try:
            if events & _WRITE:
                self._send(side)
            if events & _READ:
                self._receive(side)
            for each in (side, side.other):
                if each.other.ended and not each.pending and not each.closing:
                    each.closing = True
                    each.socket.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            return
        except OSError:
            self._close(side, reset=True)
            return
        if side.closing and side.other.closing:
            self._close(side, reset=False)
            return
        self._watch(side)
        self._watch(side.other)

    def _send(self, side: _Side) -> None:
        if not side.connected:
            failed = side.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if failed:
                raise OSError(failed, "not connected")
            side.connected = True
        if side.pending:
            del side.pending[: side.socket.send(side.pending)]

    def _receive(self, side: _Side) -> None:
        data = side.socket.recv(_PIECE)
        if data:
            side.other.pending += data
        else:
            side.ended = True

    def _watch(self, side: _Side) -> None:
        wanted = side.interest()
        known = self._selector.get_map().get(side.socket)
        if known is None:
            if wanted:
                self._selector.register(side.socket, wanted, side)
        elif not wanted:
            self._selector.unregister(side.socket)
        elif known.events != wanted:
            self._selector.modify(side.socket, wanted, side)

    def _close(self, side: _Side, *, reset: bool) -> None:
        for each in (side, side.other):
            if self._selector.get_map().get(each.socket) is not None:
                self._selector.unregister(each.socket)
            if reset:
                _reset(each.socket)
            else:
                each.socket.close()
        self._pairs -= 1
        self._accept_again()


def own_addresses() -> list[str]:
    """The addresses that this pod has towards others, one a family; nothing is sent."""
    found: list[str] = []
    # Addresses for documentation: RFC 5737 and RFC 3849.
    for family, far in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as asked:
                asked.connect((far, 9))
                found.append(asked.getsockname()[0])
        except OSError:
            continue  # no such family here, or no way out of it
    return found


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _reset(own: socket.socket) -> None:
    own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    own.close()
