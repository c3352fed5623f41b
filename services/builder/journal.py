"""What happens in one build: its steps, its log, its spans."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import timedelta

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from mayfly.v1.build_pb2 import BuildStep, WatchBuildResponse
from mayfly.v1.source_pb2 import Stage
from opentelemetry.trace import Span, Status, StatusCode, Tracer

from services.builder.backends.base import NotHere
from services.builder.failures import BuildFailed

TAIL_LINES = 20
_LONGEST_LINE = 4096
_LONGEST_DETAIL = 300
_NAMES = {Stage.STAGE_CHECK: "check", Stage.STAGE_BUILD: "build"}


class StepUnderWay:
    """A step that is under way; see `backends.base.Step`."""

    def __init__(self, proto: BuildStep) -> None:
        self.proto = proto

    def detail(self, text: str) -> None:
        """Say what it did."""
        self.proto.detail = text


class Journal:
    """Numbers events; see `backends.base.Progress`. `wake` is called when there are new ones."""

    def __init__(
        self, tracer: Tracer, *, after: int, max_lines: int, wake: Callable[[], None]
    ) -> None:
        """`after` is the last sequence number that an earlier worker has used."""
        self._tracer = tracer
        self._max_lines = max_lines
        self._wake = wake
        self._next = after + 1
        self._pending: list[bytes] = []
        self._lines = 0
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.steps: list[BuildStep] = []
        # The stage that is, or was last, under way.
        self.stage: Stage.ValueType = Stage.STAGE_CHECK

    @property
    def tail(self) -> list[str]:
        """The last log lines."""
        return list(self._tail)

    @property
    def first_pending(self) -> int:
        """The sequence number of the first event that is not written yet."""
        return self._next - len(self._pending)

    def pending(self) -> list[bytes]:
        """Return the events that are not written yet."""
        return list(self._pending)

    def written(self, count: int) -> None:
        """Say that the first `count` pending events are written."""
        del self._pending[:count]

    def log(self, line: str) -> None:
        """Add a line of the build's log; those beyond the limit are only counted."""
        line = line.rstrip()
        if not line:
            return
        self._lines += 1
        self._tail.append(line[:_LONGEST_LINE])
        if self._lines <= self._max_lines:
            self._add(WatchBuildResponse(log=line[:_LONGEST_LINE]))

    def close(self) -> None:
        """Say how many lines were left out, if any."""
        dropped = self._lines - self._max_lines
        if dropped > 0:
            self._add(WatchBuildResponse(log=f"{dropped} lines left out"))

    @contextmanager
    def step(self, stage: Stage.ValueType) -> Generator[StepUnderWay]:
        """A step, from entering to leaving; an exception marks it as failed."""
        self.stage = stage
        proto = BuildStep(stage=stage, start_time=_now())
        begin = time.perf_counter()
        self._add(WatchBuildResponse(step=proto))
        self.steps.append(proto)
        under_way = StepUnderWay(proto)
        try:
            with self._span(_NAMES[stage]):
                yield under_way
        except BuildFailed as error:
            proto.failed = True
            proto.detail = error.reason
            raise
        except NotHere as error:
            # No failure of the build: the next backend goes on.
            proto.detail = error.message[:_LONGEST_DETAIL]
            raise
        except BaseException:
            proto.failed = True
            raise
        finally:
            seconds = time.perf_counter() - begin
            duration = Duration()
            duration.FromTimedelta(timedelta(seconds=seconds))
            proto.duration.CopyFrom(duration)
            self._add(WatchBuildResponse(step=proto))

    @contextmanager
    def span(self, name: str, **attributes: str | int) -> Generator[None]:
        """A part of a step that is worth a span of its own."""
        with self._span(name, **attributes):
            yield

    @contextmanager
    def _span(self, name: str, **attributes: str | int) -> Generator[Span]:
        with self._tracer.start_as_current_span(
            name, attributes=attributes, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield span
            except BuildFailed as error:
                span.set_status(Status(StatusCode.ERROR, f"{error.reason}: {error.message}"[:300]))
                raise
            except NotHere:
                raise
            except BaseException as error:
                span.set_status(Status(StatusCode.ERROR, type(error).__name__))
                raise

    def _add(self, event: WatchBuildResponse) -> None:
        event.sequence = self._next
        event.time.CopyFrom(_now())
        self._next += 1
        self._pending.append(event.SerializeToString())
        self._wake()


def _now() -> Timestamp:
    now = Timestamp()
    now.GetCurrentTime()
    return now
