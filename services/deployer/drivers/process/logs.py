"""Turns what an instance writes into lines, whatever it writes and however much."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable

MAX_LINE_BYTES = 8192
LINES_PER_SECOND = 2000
BYTES_PER_SECOND = 8 << 20
_READ = 1 << 16

Emit = Callable[[str], None]


class LineSplitter:
    """Bytes in, lines out; a line without end comes in pieces of MAX_LINE_BYTES."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        *complete, rest = (self._rest + data).split(b"\n")
        while len(rest) >= MAX_LINE_BYTES:
            complete.append(rest[:MAX_LINE_BYTES])
            rest = rest[MAX_LINE_BYTES:]
        self._rest = rest
        return [text for line in complete for text in _decode(line)]

    def finish(self) -> list[str]:
        rest, self._rest = self._rest, b""
        return _decode(rest) if rest else []


def _decode(line: bytes) -> list[str]:
    line = line.rstrip(b"\r")
    pieces = [line[i : i + MAX_LINE_BYTES] for i in range(0, len(line), MAX_LINE_BYTES)] or [b""]
    return [
        piece.decode("utf-8", "replace").replace("\0", "\N{REPLACEMENT CHARACTER}")
        for piece in pieces
    ]


class Budget:
    """Lines and bytes of one second; what is beyond is counted."""

    def __init__(self, now: float) -> None:
        self._second = now
        self.lines = LINES_PER_SECOND
        self.bytes = BYTES_PER_SECOND
        self.dropped = 0

    def renew(self, now: float) -> int:
        """Begin a new second if the old one is over; returns how many lines the old one lost."""
        if now - self._second < 1.0:
            return 0
        self._second = now
        self.lines = LINES_PER_SECOND
        self.bytes = BYTES_PER_SECOND
        dropped, self.dropped = self.dropped, 0
        return dropped


class LogReader:
    """Reads one pipe. A writer beyond its budget of bytes waits for the next second."""

    def __init__(self, fd: int, emit: Emit, tail: deque[str]) -> None:
        self._fd = fd
        self._emit = emit
        self._tail = tail
        self._loop = asyncio.get_running_loop()
        self._splitter = LineSplitter()
        self._budget = Budget(self._loop.time())
        self._timer: asyncio.TimerHandle | None = None
        self.ended = self._loop.create_future()
        os.set_blocking(fd, False)
        self._loop.add_reader(fd, self._on_readable)

    def _on_readable(self) -> None:
        try:
            data = os.read(self._fd, _READ)
        except BlockingIOError:
            return
        self._take(data)
        if not data:
            self.close()
        elif self._budget.bytes <= 0 and self._timer is None:
            self._loop.remove_reader(self._fd)
            self._timer = self._loop.call_later(1.0, self._resume)

    def _resume(self) -> None:
        self._timer = None
        if self._fd >= 0:
            self._report(self._budget.renew(self._loop.time()))
            self._loop.add_reader(self._fd, self._on_readable)

    def _take(self, data: bytes) -> None:
        self._report(self._budget.renew(self._loop.time()))
        self._budget.bytes -= len(data)
        lines = self._splitter.feed(data) if data else self._splitter.finish()
        for line in lines:
            self._tail.append(line)
            if self._budget.lines > 0:
                self._budget.lines -= 1
                self._emit(line)
            else:
                self._budget.dropped += 1

    def _report(self, dropped: int) -> None:
        if dropped:
            self._emit(f"({dropped} lines dropped: more than {LINES_PER_SECOND} a second)")

    def close(self) -> None:
        """Read what is there and stop."""
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        self._loop.remove_reader(fd)
        if self._timer is not None:
            self._timer.cancel()
        try:
            for _ in range(16):  # at most what a pipe holds
                data = os.read(fd, _READ)
                if not data:
                    break
                self._take(data)
        except BlockingIOError:
            pass  # a process that outlives the first one still has it open
        self._take(b"")
        self._report(self._budget.dropped)
        os.close(fd)
        if not self.ended.done():
            self.ended.set_result(None)
