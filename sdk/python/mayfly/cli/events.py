"""Events and log lines as a person reads them."""

from __future__ import annotations

from datetime import datetime

from rich.text import Text

from mayfly.cli.progress import milliseconds
from mayfly.resources import Event, Failure, LeaseChange, LogLine, StageChange, StateChange

_LOG_STYLE = {"build": "dim", "platform": "dim italic", "stderr": "yellow"}


def log_text(line: LogLine, *, timestamps: bool) -> Text:
    """Return a log line, with when it was written in front if wanted."""
    text = Text(line.text, _LOG_STYLE.get(line.origin, ""))
    return Text.assemble((f"{clock_time(line.time)}  ", "dim"), text) if timestamps else text


def event_line(event: Event) -> Text:
    """Return one event. Example: "09:12:01.123  stage   build finished  3 ms  environment 8c1f"."""
    title, text = _words(event)
    return Text.assemble((f"{clock_time(event.time)}  ", "dim"), (f"{title:<8}", "bold"), text)


def _words(event: Event) -> tuple[str, Text]:
    kind = event.kind
    if isinstance(kind, StageChange):
        took = f"  {milliseconds(kind.duration.total_seconds())}" if kind.duration else ""
        detail = f"  {kind.detail}" if kind.detail else ""
        return "stage", Text(f"{kind.stage} {kind.progress}{took}{detail}")
    if isinstance(kind, LogLine):
        return kind.origin, log_text(kind, timestamps=False)
    if isinstance(kind, StateChange):
        why = f" ({kind.end_reason})" if kind.end_reason else ""
        return "state", Text(f"{kind.state}{why}")
    if isinstance(kind, LeaseChange):
        return "lease", Text(
            f"ends at {clock_time(kind.expire_time)}" if kind.expire_time else "moved"
        )
    if isinstance(kind, Failure):
        return "failure", Text(f"{kind.stage}: {kind.reason}: {kind.message}", "red")
    return "event", Text(f"of a kind that this version does not know (number {event.sequence})")


def clock_time(time: datetime | None) -> str:
    """Return a time of today in the local zone, to the millisecond."""
    if time is None:
        return "--:--:--.---"
    local = time.astimezone()
    return f"{local:%H:%M:%S}.{local.microsecond // 1000:03}"
