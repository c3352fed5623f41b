"""Functions, receipts and runtimes as a person reads them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from rich.console import Console
from rich.text import Text

from mayfly import durations
from mayfly.resources import Function, Receipt, Resource, Runtime

_STATE_STYLE = {
    "READY": "green",
    "IDLE": "blue",
    "FAILED": "red",
    "EXPIRED": "dim",
    "RECLAIMING": "dim",
    "RECLAIMED": "dim",
}


def table(
    head: Sequence[str], rows: Sequence[Sequence[Text | str]], console: Console
) -> Iterator[Text]:
    """Yield aligned lines; on a terminal none is wider than it, elsewhere nothing is cut."""
    cells = [[c if isinstance(c, Text) else Text(c) for c in row] for row in rows]
    widths = [
        max([len(title), *(row[i].cell_len for row in cells)]) for i, title in enumerate(head)
    ]
    for row in ([Text(title, "bold") for title in head], *cells):
        line = Text()
        for cell, width in zip(row, widths, strict=True):
            padded = cell.copy()
            padded.pad_right(width - cell.cell_len + 2)
            line.append_text(padded)
        line.rstrip()
        if console.is_terminal:
            line.truncate(console.width, overflow="ellipsis")
        yield line


def function_table(functions: Sequence[Function], console: Console) -> Iterator[Text]:
    """Yield the lines of a list."""
    if not functions:
        yield Text("no functions · mayfly deploy FILE", "dim")
        return
    rows = [
        (
            Text(f.id, "bold"),
            Text(f.state, _STATE_STYLE.get(f.state, "yellow")),
            ends(f),
            f.runtime or "python",
            Text(f.url, "cyan"),
        )
        for f in functions
    ]
    yield from table(("NAME", "STATE", "ENDS", "RUNTIME", "URL"), rows, console)


def ends(function: Function) -> str:
    """Return when a lease ends, or why it has ended."""
    if function.ended:
        return f"ended ({function.end_reason})" if function.end_reason else "ended"
    return f"in {durations.clock(function.left())}"


def function_page(function: Function) -> Iterator[Text]:
    """Yield all that is worth knowing about one function."""
    style = _STATE_STYLE.get(function.state, "yellow")
    yield Text.assemble((function.id, "bold"), "  ", (function.state, style))
    facts: list[tuple[str, str]] = [
        ("url", function.url),
        ("ends", _ends_at(function)),
        ("idle", _idle(function)),
        ("created", _when(function.create_time)),
        ("last used", _when(function.last_use_time)),
        ("reclaimed", _when(function.reclaim_time)),
        ("runtime", function.runtime),
        ("revision", str(function.revision) if function.revision > 1 else ""),
        ("instances", str(function.instances) if not function.ended else ""),
        ("build", function.build),
        ("labels", " ".join(f"{k}={v}" for k, v in sorted(function.labels.items()))),
        ("env", " ".join(sorted(function.env))),
        ("trace", function.trace_id),
    ]
    for title, value in facts:
        if value:
            yield Text.assemble((f"  {title:<11}", "dim"), value)
    if function.failure:
        from mayfly.cli.failure import failure_lines
        from mayfly.errors import FunctionFailed

        yield from failure_lines(FunctionFailed(function.id, function.failure))


def receipt_page(receipt: Receipt) -> Iterator[Text]:
    """Yield a receipt: what was removed, what stays, what was looked at, and the verdict."""
    verdict = ("verified", "bold green") if receipt.verified else ("NOT VERIFIED", "bold red")
    lag = durations.short(receipt.lag)
    why = f" ({receipt.end_reason})" if receipt.end_reason else ""
    yield Text.assemble(
        (receipt.id, "bold"), f"  removed {lag} after its lease ended{why}  ", verdict
    )
    yield Text.assemble(("  ended      ", "dim"), _when(receipt.expire_time))
    yield from _resources("removed", receipt.removed)
    yield from _resources("kept", receipt.kept)
    for index, what in enumerate(receipt.looked_at):
        yield Text.assemble((f"  {'' if index else 'looked at':<11}", "dim"), what)
    if receipt.residue:
        yield from _resources("residue", receipt.residue, style="red")
    else:
        yield Text.assemble(("  found      ", "dim"), "nothing of it")
    if receipt.attempts > 1:
        yield Text.assemble(("  tries      ", "dim"), str(receipt.attempts))
    if receipt.trace_id:
        yield Text.assemble(("  trace      ", "dim"), receipt.trace_id)


def receipt_table(receipts: Sequence[Receipt], console: Console) -> Iterator[Text]:
    """Yield the lines of a list of receipts."""
    if not receipts:
        yield Text("no receipts: nothing has ended yet", "dim")
        return
    rows = [
        (
            Text(r.id, "bold"),
            r.end_reason or "-",
            _when(r.reclaim_time),
            durations.short(r.lag),
            str(len(r.removed)),
            Text("yes", "green") if r.verified else Text("NO", "red"),
        )
        for r in receipts
    ]
    head = ("NAME", "WHY", "REMOVED AT", "LAG", "REMOVED", "VERIFIED")
    yield from table(head, rows, console)


def resource_line(resource: Resource) -> str:
    """Return one thing in the world. Example: "process     4711   python handler.py"."""
    detail = f"   {resource.detail}" if resource.detail else ""
    return f"{resource.type:<11} {resource.id}{detail}"


def _resources(title: str, resources: Sequence[Resource], style: str = "") -> Iterator[Text]:
    for index, resource in enumerate(resources):
        shown = title if index == 0 else ""
        yield Text.assemble((f"  {shown:<11}", style or "dim"), (resource_line(resource), style))


def runtime_lines(runtimes: Sequence[Runtime]) -> Iterator[Text]:
    """Yield each language, and whether it can be used."""
    for runtime in runtimes:
        mark = ("✓ ", "green") if runtime.available else ("✗ ", "red")
        versions = f" {', '.join(runtime.versions)}" if runtime.versions else ""
        yield Text.assemble(mark, (runtime.name, "bold"), versions)
        if runtime.sources:
            yield Text.assemble(("  takes      ", "dim"), ", ".join(runtime.sources))
        if not runtime.available:
            yield Text.assemble(("  why not    ", "dim"), runtime.unavailable_reason)
        for index, line in enumerate(runtime.example.rstrip().splitlines()):
            yield Text.assemble((f"  {'' if index else 'example':<11}", "dim"), line.expandtabs(4))


def _ends_at(function: Function) -> str:
    if function.expire_time is None:
        return ""
    at = function.expire_time.astimezone().strftime("%H:%M:%S")
    return f"{ends(function)}, at {at}" if not function.ended else ends(function)


def _idle(function: Function) -> str:
    if not function.idle_timeout:
        return ""
    return f"ends {durations.short(function.idle_timeout)} after its last use"


def _when(time: datetime | None) -> str:
    if time is None:
        return ""
    ago = datetime.now(UTC) - time
    shown = time.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return f"{shown}  ({durations.short(ago)} ago)" if ago.total_seconds() >= 0 else shown
