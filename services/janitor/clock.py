"""The wall clock, and an alarm on it.

A lease ends at a time of the wall clock, which can be stepped (by NTP, by a person, by a machine
that was suspended), while an event loop's timers count monotonic time. The alarm is therefore a
timerfd on CLOCK_REALTIME with an absolute time: the kernel wakes the loop when the clock reaches
it, however it got there, and nothing is polled (timerfd_create(2)).
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from collections.abc import Callable

_CLOCK_REALTIME = 0
_TFD_TIMER_ABSTIME = 1
_NANOSECONDS = 1_000_000_000


class _Itimerspec(ctypes.Structure):
    _fields_ = [
        ("interval_seconds", ctypes.c_long),
        ("interval_nanoseconds", ctypes.c_long),
        ("seconds", ctypes.c_long),
        ("nanoseconds", ctypes.c_long),
    ]


def now() -> int:
    """Return nanoseconds since the epoch."""
    return time.time_ns()


class Alarm:
    """Calls back on the event loop when the wall clock reaches a time."""

    def __init__(self, on_ring: Callable[[], None]) -> None:
        """Raises `OSError` when the system has no timers to give."""
        self._on_ring = on_ring
        self._libc = ctypes.CDLL(None, use_errno=True)
        flags = os.O_NONBLOCK | os.O_CLOEXEC  # TFD_NONBLOCK and TFD_CLOEXEC are these
        self._fd = self._checked(self._libc.timerfd_create(_CLOCK_REALTIME, flags))
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._ring)

    def set(self, at: int | None) -> None:
        """Ring once at `at` (ns since the epoch; a past one rings at once), or not at all."""
        # A time of zero would disarm it.
        seconds, nanoseconds = divmod(max(at, 1), _NANOSECONDS) if at is not None else (0, 0)
        spec = _Itimerspec(0, 0, seconds, nanoseconds)
        self._checked(
            self._libc.timerfd_settime(self._fd, _TFD_TIMER_ABSTIME, ctypes.byref(spec), None)
        )

    def close(self) -> None:
        """Give the timer back."""
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    def _ring(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return  # it was set anew between the kernel's wake-up and now
        self._on_ring()

    @staticmethod
    def _checked(result: int) -> int:
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return result
