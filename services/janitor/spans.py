"""The end of a lease in the function's own trace: expire, with reclaim and verify below it."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from mayfly.v1 import janitor_pb2
from opentelemetry.trace import Status, StatusCode, Tracer, set_span_in_context

from libs.telemetry.traceparent import context_of

# The exporter sends a few times a second and drops what exceeds its queue: ten thousand functions
# that end together are told of over some seconds instead.
_AT_ONCE = 400
_PAUSE_SECONDS = 0.25


@dataclass(frozen=True)
class Interval:
    """A time span, in ns since the epoch."""

    start: int
    end: int


@dataclass(frozen=True)
class Ended:
    """One lease that has ended, as its spans tell it."""

    traceparent: str
    receipt: janitor_pb2.Receipt
    reclaim: Interval
    verify: Interval


class Spans:
    """Writes the spans a little later, so that they never delay a reclamation."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._waiting: deque[Ended] = deque()
        self._some = asyncio.Event()

    def add(self, ended: Ended) -> None:
        """Write the spans of one lease soon; what has no trace has none."""
        if ended.traceparent:
            self._waiting.append(ended)
            self._some.set()

    async def run(self) -> None:
        """Write without end."""
        while True:
            await self._some.wait()
            self.flush(_AT_ONCE)
            await asyncio.sleep(_PAUSE_SECONDS)

    def flush(self, count: int | None = None) -> None:
        """Write up to `count` of what waits; everything when None."""
        todo = len(self._waiting) if count is None else min(count, len(self._waiting))
        for _ in range(todo):
            self._write(self._waiting.popleft())
        if not self._waiting:
            self._some.clear()

    def _write(self, ended: Ended) -> None:
        receipt = ended.receipt
        start = min(receipt.expire_time.ToNanoseconds(), ended.reclaim.start)
        expire = self._tracer.start_span(
            "expire", context=context_of(ended.traceparent), start_time=start
        )
        expire.set_attribute("mayfly.resource", receipt.resource)
        expire.set_attribute("mayfly.end_reason", receipt.end_reason)
        expire.set_attribute("mayfly.lag_ms", receipt.lag.ToNanoseconds() / 1e6)
        below = set_span_in_context(expire)
        reclaim = self._tracer.start_span("reclaim", context=below, start_time=ended.reclaim.start)
        reclaim.set_attribute("mayfly.removed", len(receipt.removed))
        reclaim.set_attribute("mayfly.attempts", receipt.attempts)
        reclaim.end(ended.reclaim.end)
        verify = self._tracer.start_span("verify", context=below, start_time=ended.verify.start)
        verify.set_attribute("mayfly.looked_at", list(receipt.looked_at))
        if not receipt.verified:
            verify.set_status(Status(StatusCode.ERROR, "something of it is still there"))
        verify.end(ended.verify.end)
        expire.end(ended.verify.end)
