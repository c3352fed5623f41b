"""A deployment as it happens: finished stages as lines, what runs now in a region that moves."""

from __future__ import annotations

import time
from collections import deque
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from mayfly import durations
from mayfly.resources import Event, Function, LogLine, StageChange

_DONE = {"check": "checked", "build": "built", "deploy": "deployed", "route": "routed"}
_NOW = {"check": "checking", "build": "building", "deploy": "deploying", "route": "routing"}
_LOG_LINES = 6


class Progress:
    """Shows events; on a terminal with a live region, elsewhere line by line."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._log: deque[str] = deque(maxlen=_LOG_LINES)
        self._running: dict[str, float] = {}
        self._spinner = Spinner("dots", style="cyan")
        self._live = (
            Live(
                console=console, transient=True, refresh_per_second=12, get_renderable=self._region
            )
            if console.is_terminal
            else None
        )

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.stop()

    def show(self, event: Event) -> None:
        """Show one event."""
        kind = event.kind
        if isinstance(kind, StageChange):
            self._stage(kind)
        elif isinstance(kind, LogLine):
            if self._live:
                self._log.append(kind.text)
            else:
                self._print(Text(f"    | {kind.text}"))

    def _stage(self, change: StageChange) -> None:
        if change.progress == "started":
            self._running[change.stage] = time.monotonic()
            return
        self._running.pop(change.stage, None)
        self._log.clear()
        if change.progress == "finished":
            self._print(stage_line(change))

    def _print(self, line: Text) -> None:
        self._console.print(line, soft_wrap=True)

    def _region(self) -> Group:
        now = time.monotonic()
        doing = [
            f"{_NOW.get(stage, stage)} {now - since:.1f} s"
            for stage, since in self._running.items()
        ]
        self._spinner.update(text=Text(" " + (", ".join(doing) or "waiting")))
        width = max(self._console.width - 6, 20)
        lines = [Text("    | " + line[:width], style="dim", no_wrap=True) for line in self._log]
        return Group(*lines, self._spinner)


def stage_line(change: StageChange) -> Text:
    """Return the line of a finished stage. Example: "  built       3 ms   environment 8c1f2a"."""
    verb = _DONE.get(change.stage, change.stage)
    took = milliseconds(change.duration.total_seconds()) if change.duration else ""
    line = Text.assemble("  ", (f"{verb:<9}", "green"), f"{took:>7}")
    if change.detail:
        line.append(f"   {change.detail}", "dim")
    return line


def milliseconds(seconds: float) -> str:
    """Return how long something took. Examples: "3 ms", "842 ms", "12.3 s"."""
    return f"{seconds * 1000:.0f} ms" if seconds < 9.9995 else f"{seconds:.1f} s"


def live_line(function: Function) -> Text:
    """Return where a function answers, until when, and how to make it longer."""
    line = Text.assemble("  ", (function.url, "bold cyan"))
    line.append(f"      ends in {durations.clock(function.left())}")
    if function.idle_timeout:
        line.append(f", or {durations.short(function.idle_timeout)} after its last use")
    line.append(f" · mayfly renew {function.id} --ttl 1h", "dim")
    return line
