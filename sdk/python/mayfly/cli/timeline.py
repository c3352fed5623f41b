"""Where the spans of a trace lie on a line of so many columns; pure.

A trace holds milliseconds of work and, between them, minutes in which nothing happens but a lease
that runs. Time in which no span works is therefore drawn a few columns wide and marked, and the
rest to scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from mayfly.resources import Span

# Columns of a pause that is not drawn to scale.
GAP_COLUMNS = 3
# A pause is shortened when it is longer than this share of all the work.
_LONG = 0.25


@dataclass(frozen=True)
class Stretch:
    """A piece of time, in ns since the epoch."""

    start: int
    end: int
    # Nothing happens in it, and it is not to scale.
    pause: bool

    @property
    def length(self) -> int:
        """How long it is, in ns."""
        return self.end - self.start


@dataclass(frozen=True)
class Bar:
    """The columns of a span; `end` is the first one after it."""

    start: int
    end: int


def workers(spans: Sequence[Span]) -> list[Span]:
    """Return the spans that do something themselves: those without children."""
    parents = {span.parent_span_id for span in spans}
    return [span for span in spans if span.span_id not in parents]


def stretches(spans: Sequence[Span]) -> list[Stretch]:
    """Divide the time of a trace into work, to scale, and long pauses."""
    if not spans:
        return []
    busy = _union([(span.start, max(span.end, span.start)) for span in workers(spans)])
    work = sum(end - start for start, end in busy)
    points = sorted(
        {min(s.start for s in spans), max(max(s.end, s.start) for s in spans)}
        | {point for interval in busy for point in interval}
    )
    found: list[Stretch] = []
    for start, end in pairwise(points):
        idle = not any(a <= start and end <= b for a, b in busy)
        pause = idle and end - start > max(work * _LONG, 1_000_000)
        if found and not pause and not found[-1].pause:
            found[-1] = Stretch(found[-1].start, end, pause=False)
        else:
            found.append(Stretch(start, end, pause))
    return found or [Stretch(points[0], points[0], pause=False)]


class Timeline:
    """Maps times to columns."""

    def __init__(self, spans: Sequence[Span], columns: int) -> None:
        self.stretches = stretches(spans)
        self.columns = columns
        pauses = sum(stretch.pause for stretch in self.stretches)
        self._work = sum(s.length for s in self.stretches if not s.pause) or 1
        self._for_work = max(columns - pauses * GAP_COLUMNS, 1)

    def column(self, time: int) -> float:
        """Return where `time` lies."""
        at = 0.0
        for stretch in self.stretches:
            width = self._width(stretch)
            if time < stretch.end or stretch is self.stretches[-1]:
                share = (time - stretch.start) / stretch.length if stretch.length else 0.0
                return at + width * min(max(share, 0.0), 1.0)
            at += width
        return at

    def bar(self, span: Span) -> Bar:
        """Return the columns of a span: one at least, and none outside."""
        start = min(int(self.column(span.start)), self.columns - 1)
        end = round(self.column(max(span.end, span.start)))
        return Bar(start, min(max(end, start + 1), self.columns))

    def pauses(self) -> list[tuple[int, Stretch]]:
        """Return the middle column of each pause."""
        return [
            (int(self.column(stretch.start) + GAP_COLUMNS / 2), stretch)
            for stretch in self.stretches
            if stretch.pause
        ]

    def _width(self, stretch: Stretch) -> float:
        if stretch.pause:
            return GAP_COLUMNS
        return stretch.length / self._work * self._for_work


def _union(intervals: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def depth_first(spans: Sequence[Span]) -> list[tuple[int, Span]]:
    """Return spans with their depth, children below their parents, by start time.

    A span whose parent is not known here (yet) counts as a root.
    """
    known = {span.span_id for span in spans}
    children: dict[str, list[Span]] = {}
    for span in sorted(spans, key=lambda span: (span.start, -span.end)):
        parent = span.parent_span_id if span.parent_span_id in known else ""
        children.setdefault(parent, []).append(span)
    ordered: list[tuple[int, Span]] = []
    waiting = [(0, span) for span in reversed(children.get("", []))]
    while waiting:
        depth, span = waiting.pop()
        ordered.append((depth, span))
        waiting += [(depth + 1, child) for child in reversed(children.get(span.span_id, []))]
    return ordered
