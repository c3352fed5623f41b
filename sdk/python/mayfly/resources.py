"""What Mayfly answers, as frozen values with Python's own types.

Each is made from a message of the contracts by `of(message)` and gives the JSON of the HTTP API by
`to_json()`. Times are aware datetimes in UTC.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from mayfly.v1 import build_pb2, function_pb2, janitor_pb2, reclaimer_pb2, source_pb2

StateName = Literal[
    "UNSPECIFIED",
    "PENDING",
    "BUILDING",
    "DEPLOYING",
    "READY",
    "IDLE",
    "EXPIRED",
    "RECLAIMING",
    "RECLAIMED",
    "FAILED",
]
ENDED = frozenset({"EXPIRED", "RECLAIMING", "RECLAIMED"})


def json_of(message: Message) -> dict[str, Any]:
    """Return a message as the HTTP API gives it (https://protobuf.dev/programming-guides/json/)."""
    return MessageToDict(message)


@dataclass(frozen=True)
class _Resource:
    """A value with the message that it was made from."""

    raw: Message = field(repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Return it as the HTTP API gives it."""
        return json_of(self.raw)


@dataclass(frozen=True)
class Failure(_Resource):
    """Why a function is FAILED, and what helps."""

    # "check", "build", "deploy", "route" or "reclaim".
    stage: str
    # The name of an `ErrorReason`. Example: "SOURCE_SYNTAX".
    reason: str
    message: str
    fix: str
    # Counted from 1; 0 when no line is to blame.
    line: int
    column: int
    source_line: str
    log_tail: tuple[str, ...]
    exit_code: int | None

    @classmethod
    def of(cls, message: source_pb2.Failure) -> Failure:
        """Make it from the contracts' message."""
        return cls(
            raw=message,
            stage=stage_name(message.stage),
            reason=message.reason,
            message=message.message,
            fix=message.fix,
            line=message.line,
            column=message.column,
            source_line=message.source_line,
            log_tail=tuple(message.log_tail),
            exit_code=message.exit_code if message.HasField("exit_code") else None,
        )


@dataclass(frozen=True)
class Function(_Resource):
    """A function and its lease."""

    # The part of the name after "functions/".
    id: str
    uid: str
    runtime: str
    state: StateName
    url: str
    create_time: datetime | None
    expire_time: datetime | None
    last_use_time: datetime | None
    reclaim_time: datetime | None
    ttl: timedelta | None
    idle_timeout: timedelta | None
    env: dict[str, str]
    labels: dict[str, str]
    failure: Failure | None
    build: str
    revision: int
    instances: int
    trace_id: str
    # "ttl", "idle" or "deleted"; empty while the lease lasts.
    end_reason: str

    @classmethod
    def of(cls, message: function_pb2.Function) -> Function:
        """Make it from the contracts' message."""
        state: Any = function_pb2.State.Name(message.state).removeprefix("STATE_")
        return cls(
            raw=message,
            id=message.name.removeprefix("functions/"),
            uid=message.uid,
            runtime=message.runtime,
            state=state,
            url=message.url,
            create_time=time_in(message, "create_time"),
            expire_time=time_in(message, "expire_time"),
            last_use_time=time_in(message, "last_use_time"),
            reclaim_time=time_in(message, "reclaim_time"),
            ttl=span_in(message, "ttl"),
            idle_timeout=span_in(message, "idle_timeout"),
            env=dict(message.env),
            labels=dict(message.labels),
            failure=Failure.of(message.failure) if message.HasField("failure") else None,
            build=message.build,
            revision=message.revision,
            instances=message.instances,
            trace_id=message.trace_id,
            end_reason=end_reason_name(message.end_reason),
        )

    @property
    def ended(self) -> bool:
        """Whether the lease has ended."""
        return self.state in ENDED

    def left(self, now: datetime | None = None) -> timedelta:
        """Return how long the lease still is; zero when it has ended."""
        if self.expire_time is None or self.ended:
            return timedelta()
        return max(self.expire_time - (now or datetime.now(UTC)), timedelta())


@dataclass(frozen=True)
class StageChange:
    """A stage started or ended."""

    stage: str
    progress: Literal["started", "finished", "failed", "unspecified"]
    duration: timedelta | None
    detail: str


@dataclass(frozen=True)
class LogLine:
    """A line that was written."""

    text: str
    # "build", "stdout", "stderr" or "platform".
    origin: str
    instance: str = ""
    time: datetime | None = None
    sequence: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return it as the HTTP API gives it."""
        line = function_pb2.TailLogsResponse(sequence=self.sequence)
        line.log.text, line.log.instance = self.text, self.instance
        line.log.origin = function_pb2.LogEvent.Origin.Value(f"ORIGIN_{self.origin.upper()}")
        if self.time:
            line.time.FromDatetime(self.time)
        return json_of(line)


@dataclass(frozen=True)
class StateChange:
    """The state changed."""

    state: str
    end_reason: str


@dataclass(frozen=True)
class LeaseChange:
    """The deadline changed."""

    expire_time: datetime | None


Kind = StageChange | LogLine | StateChange | LeaseChange | Failure | None


@dataclass(frozen=True)
class Event(_Resource):
    """Something that happened to a function."""

    # Counts the function's events from 1, without gaps.
    sequence: int
    time: datetime | None
    kind: Kind

    @classmethod
    def of(cls, message: function_pb2.FunctionEvent) -> Event:
        """Make it from the contracts' message."""
        time = time_in(message, "time")
        return cls(message, message.sequence, time, _kind(message, time))


def _kind(message: function_pb2.FunctionEvent, time: datetime | None) -> Kind:
    which = message.WhichOneof("kind")
    if which == "stage":
        stage = message.stage
        progress: Any = function_pb2.StageEvent.Progress.Name(stage.progress)
        return StageChange(
            stage_name(stage.stage),
            progress.removeprefix("PROGRESS_").lower(),
            span_in(stage, "duration"),
            stage.detail,
        )
    if which == "log":
        return _log_line(message.log, time, message.sequence)
    if which == "state":
        name = function_pb2.State.Name(message.state.state).removeprefix("STATE_")
        return StateChange(name, end_reason_name(message.state.end_reason))
    if which == "failure":
        return Failure.of(message.failure)
    if which == "lease":
        return LeaseChange(time_in(message.lease, "expire_time"))
    return None


def log_line(message: function_pb2.TailLogsResponse) -> LogLine:
    """Make a line from the contracts' message."""
    return _log_line(message.log, time_in(message, "time"), message.sequence)


def _log_line(log: function_pb2.LogEvent, time: datetime | None, sequence: int) -> LogLine:
    origin = function_pb2.LogEvent.Origin.Name(log.origin).removeprefix("ORIGIN_").lower()
    return LogLine(log.text, origin, log.instance, time, sequence)


@dataclass(frozen=True)
class Resource(_Resource):
    """Something in the world: a process, a directory, a socket, a route, a row."""

    type: str
    id: str
    owner: str
    uid: str
    orphan: bool
    detail: str

    @classmethod
    def of(cls, message: reclaimer_pb2.Resource) -> Resource:
        """Make it from the contracts' message."""
        return cls(
            message,
            message.type,
            message.id,
            message.owner,
            message.uid,
            message.orphan,
            message.detail,
        )


@dataclass(frozen=True)
class Receipt(_Resource):
    """What was removed at the end of a lease, and what was looked at to verify it."""

    id: str
    resource: str
    uid: str
    create_time: datetime | None
    expire_time: datetime | None
    reclaim_time: datetime | None
    lag: timedelta
    end_reason: str
    removed: tuple[Resource, ...]
    kept: tuple[Resource, ...]
    looked_at: tuple[str, ...]
    residue: tuple[Resource, ...]
    verified: bool
    attempts: int
    trace_id: str

    @classmethod
    def of(cls, message: janitor_pb2.Receipt) -> Receipt:
        """Make it from the contracts' message."""
        return cls(
            raw=message,
            id=message.name.removeprefix("receipts/"),
            resource=message.resource,
            uid=message.uid,
            create_time=time_in(message, "create_time"),
            expire_time=time_in(message, "expire_time"),
            reclaim_time=time_in(message, "reclaim_time"),
            lag=message.lag.ToTimedelta(),
            end_reason=message.end_reason,
            removed=tuple(Resource.of(r) for r in message.removed),
            kept=tuple(Resource.of(r) for r in message.kept),
            looked_at=tuple(message.looked_at),
            residue=tuple(Resource.of(r) for r in message.residue),
            verified=message.verified,
            attempts=message.attempts,
            trace_id=message.trace_id,
        )


@dataclass(frozen=True)
class SweepFinding(_Resource):
    """Something that belongs to nothing."""

    resource: Resource
    removed: bool
    error: str

    @classmethod
    def of(cls, message: janitor_pb2.SweepFinding) -> SweepFinding:
        """Make it from the contracts' message."""
        return cls(message, Resource.of(message.resource), message.removed, message.error)


@dataclass(frozen=True)
class SweepSummary(_Resource):
    """How a sweep ended."""

    found: int
    removed: int
    looked_at: tuple[str, ...]
    # Owners that could not be asked, and why.
    unreachable: tuple[str, ...]

    @classmethod
    def of(cls, message: janitor_pb2.SweepSummary) -> SweepSummary:
        """Make it from the contracts' message."""
        looked_at, unreachable = tuple(message.looked_at), tuple(message.unreachable)
        return cls(message, message.found, message.removed, looked_at, unreachable)


def sweep_response(message: janitor_pb2.SweepResponse) -> SweepFinding | SweepSummary:
    """Make a finding, or the summary that ends a sweep."""
    if message.HasField("summary"):
        return SweepSummary.of(message.summary)
    return SweepFinding.of(message.finding)


@dataclass(frozen=True)
class JanitorStatus(_Resource):
    """How far the janitor is behind."""

    deadlines: int
    overdue: int
    lag: timedelta
    next_deadline: datetime | None
    owners: tuple[str, ...]
    last_sweep_time: datetime | None

    @classmethod
    def of(cls, message: janitor_pb2.GetStatusResponse) -> JanitorStatus:
        """Make it from the contracts' message."""
        return cls(
            raw=message,
            deadlines=message.deadlines,
            overdue=message.overdue,
            lag=message.lag.ToTimedelta(),
            next_deadline=time_in(message, "next_deadline"),
            owners=tuple(message.owners),
            last_sweep_time=time_in(message, "last_sweep_time"),
        )


@dataclass(frozen=True)
class Runtime(_Resource):
    """A language that functions can be written in."""

    name: str
    available: bool
    unavailable_reason: str
    versions: tuple[str, ...]
    example: str
    sources: tuple[str, ...]

    @classmethod
    def of(cls, message: build_pb2.Runtime) -> Runtime:
        """Make it from the contracts' message."""
        return cls(
            raw=message,
            name=message.name,
            available=message.available,
            unavailable_reason=message.unavailable_reason,
            versions=tuple(message.versions),
            example=message.example,
            sources=tuple(message.sources),
        )


@dataclass(frozen=True)
class Span(_Resource):
    """One span of a trace."""

    span_id: str
    # Empty at the root.
    parent_span_id: str
    name: str
    service: str
    # Times in ns since the epoch: datetimes would lose what makes short spans differ.
    start: int
    end: int
    attributes: dict[str, str]
    # Empty when it did not end in one.
    error: str

    @classmethod
    def of(cls, message: function_pb2.Span) -> Span:
        """Make it from the contracts' message."""
        return cls(
            raw=message,
            span_id=message.span_id,
            parent_span_id=message.parent_span_id,
            name=message.name,
            service=message.service,
            start=message.start_time.ToNanoseconds(),
            end=message.end_time.ToNanoseconds(),
            attributes=dict(message.attributes),
            error=message.error,
        )


@dataclass(frozen=True)
class Trace(_Resource):
    """Everything that happened to a function, as spans by start time."""

    trace_id: str
    spans: tuple[Span, ...]

    @classmethod
    def of(cls, message: function_pb2.GetTraceResponse) -> Trace:
        """Make it from the contracts' message."""
        return cls(message, message.trace_id, tuple(Span.of(span) for span in message.spans))


def stage_name(stage: source_pb2.Stage.ValueType) -> str:
    """Return a stage in a word. Example: "build"."""
    return source_pb2.Stage.Name(stage).removeprefix("STAGE_").lower()


def end_reason_name(reason: function_pb2.EndReason.ValueType) -> str:
    """Return why a lease ended in a word; empty while it lasts."""
    name = function_pb2.EndReason.Name(reason).removeprefix("END_REASON_").lower()
    return "" if name == "unspecified" else name


def time_in(message: Any, name: str) -> datetime | None:
    """Return a timestamp field; None when it is unset."""
    value: Timestamp = getattr(message, name)
    return value.ToDatetime(tzinfo=UTC) if message.HasField(name) else None


def span_in(message: Any, name: str) -> timedelta | None:
    """Return a duration field; None when it is unset."""
    value: Duration = getattr(message, name)
    return value.ToTimedelta() if message.HasField(name) else None
