"""A trace as a waterfall."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from rich.text import Text

from mayfly import durations
from mayfly.cli.timeline import Timeline, depth_first
from mayfly.resources import Span, Trace

_STYLES = {
    "gateway": "magenta",
    "deployer": "cyan",
    "builder": "yellow",
    "janitor": "green",
}
_SERVICE_WIDTH = 9
_DURATION_WIDTH = 8


def waterfall(trace: Trace, width: int) -> Iterator[Text]:
    """Yield a line a span: name, service, how long, and a bar where it lies in time."""
    yield Text.assemble(("trace ", "dim"), trace.trace_id)
    rows = depth_first(trace.spans)
    if not rows:
        yield Text("no spans yet", "dim")
        return
    names = ["  " * depth + _short(span.name) for depth, span in rows]
    name_width = min(max(len(name) for name in names), max(width // 3, 12))
    bar_width = max(width - name_width - _SERVICE_WIDTH - _DURATION_WIDTH - 6, 10)
    timeline = Timeline(trace.spans, bar_width)
    for name, (_, span) in zip(names, rows, strict=True):
        line = Text(f"{_cut(name, name_width):<{name_width}}  ")
        line.append(f"{_cut(span.service, _SERVICE_WIDTH):<{_SERVICE_WIDTH}}", "dim")
        line.append(f" {length(span.end - span.start):>{_DURATION_WIDTH}}  ")
        line.append_text(_bar(timeline, span))
        yield line
        if span.error:
            yield Text(f"{'':<{name_width}}  {span.error}", "red")
    pauses = timeline.pauses()
    if pauses:
        waits = ", ".join(length(stretch.length) for _, stretch in pauses)
        yield Text(f"┊ nothing happens for {waits} (not to scale)", "dim")


def _bar(timeline: Timeline, span: Span) -> Text:
    bar = timeline.bar(span)
    cells = [" "] * timeline.columns
    for column, _ in timeline.pauses():
        cells[min(column, timeline.columns - 1)] = "┊"
    pauses = {column for column, _ in timeline.pauses()}
    for column in range(bar.start, bar.end):
        # A span that outlasts a pause is seen to go on through it.
        cells[column] = "┄" if column in pauses and bar.end - bar.start > 1 else "━"
    style = "red" if span.error else _STYLES.get(span.service, "blue")
    text = Text("".join(cells[: bar.start]), "dim")
    text.append("".join(cells[bar.start : bar.end]), style)
    text.append("".join(cells[bar.end :]), "dim")
    text.rstrip()
    return text


def length(nanoseconds: int) -> str:
    """Return how long something took, in at most 8 characters. Examples: "0.4 ms", "9m58s"."""
    milliseconds = max(nanoseconds, 0) / 1e6
    if milliseconds < 10:
        return f"{milliseconds:.1f} ms"
    if milliseconds < 10_000:
        return f"{milliseconds:.0f} ms"
    return durations.short(timedelta(milliseconds=milliseconds))


def _short(name: str) -> str:
    """Return a call's method alone: "/mayfly.v1.BuildService/GetBuild" is "GetBuild"."""
    return name.rpartition("/")[2] if name.startswith("/") else name


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
