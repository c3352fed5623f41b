"""The page of memory that an instance shares with the supervisor, instead of messages.

An array of unsigned 64-bit integers; times are CLOCK_MONOTONIC in nanoseconds:
  0  connections open now          1  connections accepted so far
  2  time of the last change       3  drain: not 0 when no more may be accepted
  8+ one slot a connection: when its request was given to the handler; 0 when there is none, or
     when its response has begun (a stream may last as long as the lease)
"""

from __future__ import annotations

import mmap
import threading
import time

OPEN, ACCEPTED, CHANGED, DRAIN, SLOTS = 0, 1, 2, 3, 8

DRAIN_ASKED = 1
DRAIN_SELF = 2


def page_size(concurrency: int) -> int:
    """Bytes for an instance that takes `concurrency` connections at a time."""
    pages = -(-8 * (SLOTS + concurrency) // mmap.PAGESIZE)
    return pages * mmap.PAGESIZE


class StatusPage:
    """The instance's side."""

    def __init__(self, fd: int, concurrency: int) -> None:
        self._map = mmap.mmap(fd, page_size(concurrency))
        self._words = memoryview(self._map).cast("Q")
        self._free: list[int] = list(range(SLOTS + concurrency - 1, SLOTS - 1, -1))
        self._lock = threading.Lock()

    def open(self) -> int:
        """A connection was accepted; returns its slot."""
        with self._lock:
            words = self._words
            slot = self._free.pop()
            words[OPEN] += 1
            words[ACCEPTED] += 1
            words[CHANGED] = time.monotonic_ns()
            return slot

    def close(self, slot: int) -> None:
        with self._lock:
            words = self._words
            words[slot] = 0
            words[OPEN] -= 1
            words[CHANGED] = time.monotonic_ns()
            self._free.append(slot)

    def begin(self, slot: int) -> None:
        """The handler has the request: the time limit starts."""
        self._words[slot] = time.monotonic_ns()

    def end(self, slot: int) -> None:
        """The response has begun or ended."""
        self._words[slot] = 0

    def drain(self) -> None:
        self._words[DRAIN] = DRAIN_SELF

    @property
    def draining(self) -> bool:
        return self._words[DRAIN] != 0

    @property
    def connections(self) -> int:
        return self._words[OPEN]
