"""What functions are used for, gathered from Envoy's load reports and from held requests."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from mayfly.v1.route_pb2 import ActivityReport, FunctionActivity


@dataclass(frozen=True)
class Function:
    """One life of one function."""

    id: str
    uid: str


class Activity:
    """Counts until a report is taken; `wake` is called when one is worth sending at once."""

    def __init__(
        self, uid_of: Callable[[str], str], clock: Callable[[], float] = time.time
    ) -> None:
        self._uid_of = uid_of
        self._clock = clock
        self._begun: Counter[Function] = Counter()
        self._held: Counter[Function] = Counter()
        self._running: dict[Function, int] = {}
        self._last_use: dict[Function, float] = {}
        self._reported: set[Function] = set()
        self._since = clock()
        self.wake: Callable[[], None] = _nothing

    def envoy_reported(self, loads: dict[str, tuple[int, int]]) -> None:
        """Take Envoy's load report: {function id: (begun, open)}. What it leaves out is unused."""
        now = self._clock()
        self._running = {}
        for function_id, (begun, running) in loads.items():
            uid = self._uid_of(function_id)
            if not uid:
                continue
            function = Function(function_id, uid)
            if begun:
                self._begun[function] += begun
            if running:
                self._running[function] = running
            if begun or running:
                self._last_use[function] = now
        self.wake()

    @contextmanager
    def request(self, function: Function) -> Generator[None]:
        """Count one held request for as long as it is open."""
        self._begun[function] += 1
        self._held[function] += 1
        self._last_use[function] = self._clock()
        self.wake()
        try:
            yield
        finally:
            self._held[function] -= 1
            if not self._held[function]:
                del self._held[function]
            self._last_use[function] = self._clock()
            self.wake()

    def report(self) -> ActivityReport | None:
        """Return what happened since the last report; None when there is nothing to say.

        A function whose last request has ended is in one more report, with `in_flight` 0.
        """
        now = self._clock()
        running = Counter(self._running)
        running.update(self._held)
        functions = {*self._begun, *running, *self._last_use, *self._reported}
        entries = [
            FunctionActivity(
                function_id=function.id,
                uid=function.uid,
                requests=self._begun[function],
                in_flight=running[function],
                last_use_time=_timestamp(
                    now if running[function] else self._last_use.get(function, 0.0)
                ),
            )
            for function in functions
        ]
        report = ActivityReport(functions=entries, interval=_duration(now - self._since))
        self._since = now
        self._begun.clear()
        self._last_use.clear()
        self._reported = set(running)
        return report if entries else None


def _timestamp(seconds: float) -> Timestamp | None:
    if not seconds:
        return None
    made = Timestamp()
    made.FromNanoseconds(round(seconds * 1e9))
    return made


def _duration(seconds: float) -> Duration:
    made = Duration()
    made.FromNanoseconds(max(0, round(seconds * 1e9)))
    return made


def _nothing() -> None:
    """Nobody waits for reports yet."""
