"""Which requests the handlers of a container have, how many at once, and for how long."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import NamedTuple


class _Running(NamedTuple):
    since: float
    sock: socket.socket


class Permits:
    """At most `concurrency` requests have a permit; the others wait for one, first come first.

    A request whose response has not begun `timeout` seconds after its handler got it is overdue:
    `on_overdue` is called with its socket, and its permit goes to the next. Its thread cannot be
    stopped and is counted in `stuck`.
    """

    def __init__(
        self, concurrency: int, timeout: float, on_overdue: Callable[[socket.socket], None]
    ) -> None:
        self._timeout = timeout
        self._on_overdue = on_overdue
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._permits = threading.Semaphore(concurrency)
        self._running: dict[int, _Running] = {}
        self._sockets: dict[int, socket.socket] = {}
        self._overdue: set[int] = set()
        self._slots = 0
        self.draining = False
        self.stuck = 0

    def open(self, sock: socket.socket) -> int:
        """A connection; returns the number that stands for it."""
        with self._lock:
            self._slots += 1
            self._sockets[self._slots] = sock
            return self._slots

    def close(self, slot: int) -> None:
        """The connection's end."""
        with self._lock:
            del self._sockets[slot]

    def take(self) -> None:
        """Wait for a permit."""
        self._permits.acquire()

    def give(self, slot: int) -> bool:
        """Give the permit of `slot` back, which was taken before; whether it had kept it."""
        with self._lock:
            if slot in self._overdue:
                self._overdue.discard(slot)
                self.stuck -= 1
                return False
        self._permits.release()
        return True

    def begin(self, slot: int) -> None:
        """The handler has the request: the time limit starts."""
        with self._lock:
            self._running[slot] = _Running(time.monotonic(), self._sockets[slot])
            self._changed.notify()

    def end(self, slot: int) -> None:
        """The handler has returned: what follows may take any time."""
        with self._lock:
            self._running.pop(slot, None)

    def watch(self) -> None:
        """Look for what is overdue, without end; for a thread of its own."""
        with self._lock:
            while True:
                self._expire(time.monotonic() - self._timeout)
                first = min((each.since for each in self._running.values()), default=None)
                pause = None if first is None else first + self._timeout - time.monotonic()
                self._changed.wait(None if pause is None else max(0.0, pause))

    def _expire(self, before: float) -> None:
        late = [slot for slot, each in self._running.items() if each.since <= before]
        for slot in late:
            running = self._running.pop(slot)
            self._overdue.add(slot)
            self.stuck += 1
            # Under the lock: its thread passes `end` before it writes, and then finds the socket
            # shut.
            self._on_overdue(running.sock)
            self._permits.release()
